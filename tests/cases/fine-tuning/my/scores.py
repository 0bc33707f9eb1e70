class Sharpness:
    pass
