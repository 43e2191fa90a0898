"""ds_seq: dense and Mixture-of-Experts sequence-to-sequence Transformers on DeepSpeed."""

__version__ = "0.1.0"
