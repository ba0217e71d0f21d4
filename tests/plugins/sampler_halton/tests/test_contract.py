"""The sampler keeps to what autocompress asks of every sampler."""

from autocompress_sampler_halton import HaltonSampler

from autocompress.testing.sampler import SamplerContract


class TestHalton(SamplerContract):
    def make(self, context):
        return HaltonSampler(context)
