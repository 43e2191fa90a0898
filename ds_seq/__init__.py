"""ds_seq: dense and Mixture-of-Experts sequence-to-sequence Transformers on DeepSpeed.

    import ds_seq

    model = ds_seq.load("runs/x")  # a run folder or an export
    model.translate(["Hello."], beam=5)

The Python API is in `ds_seq.api`, which is imported on first use so that `import ds_seq` is fast.
"""

__version__ = "0.1.0"
__all__ = ["TrainedModel", "UserError", "__version__", "fit", "load", "prepare"]

TYPE_CHECKING = False  # as in `typing`, without importing it
if TYPE_CHECKING:
    from ds_seq.api import TrainedModel as TrainedModel
    from ds_seq.api import fit as fit
    from ds_seq.api import load as load
    from ds_seq.api import prepare as prepare
    from ds_seq.errors import UserError as UserError
else:

    def __getattr__(name):
        if name not in __all__:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        from ds_seq import api

        return vars(api)[name]
