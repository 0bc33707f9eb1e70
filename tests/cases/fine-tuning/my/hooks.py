class Report:
    pass


class Average:
    def __init__(self, decay):
        self.decay = decay
