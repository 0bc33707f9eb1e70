class Focal:
    def __init__(self, gamma):
        self.gamma = gamma

    def __call__(self, output, target):
        return ((output - target).abs() ** self.gamma).mean()
