def Lines(data_dir, split, tokens):
    raise NotImplementedError


def Model(width):
    raise NotImplementedError


def loss():
    raise NotImplementedError
