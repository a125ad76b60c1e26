def benchmark(d):
    raise NotImplementedError
