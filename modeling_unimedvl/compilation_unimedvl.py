"""One switch that compiles the repeated blocks of a model, each as a region that serves all of its kind."""

from typing import TYPE_CHECKING, Any

from torch import nn

if TYPE_CHECKING:
    _Base = nn.Module
else:
    _Base = object


class RegionalCompilationMixin(_Base):
    """`compile_repeated_blocks` as in diffusers, for a transformers model.

    The layers of a stack differ by their weights and by what they are handed, never by a number of their own, so that
    a graph is compiled once for each kind of call (reading a prompt, decoding, a denoising step, training) and not
    once for each layer.
    """

    # Names of the classes that are compiled, as diffusers calls them.
    _repeated_blocks = ("UniMedVLDecoderLayer", "SiglipEncoderLayer")

    def compile_repeated_blocks(self, **torch_compile_kwargs: Any) -> None:
        """Compile every layer of the language model and of the ViT as a region of its own.

        Nothing is compiled before the first call. Weights, names and saved files stay as they are.
        `decompile_repeated_blocks` undoes it.

        Args:
            **torch_compile_kwargs: of `torch.compile`: `backend`, `mode` ("reduce-overhead" records CUDA graphs, on
                GPUs only), `dynamic`, `options`. `recompile_limit` is 64 where it is not given: torch's own limit of
                8 would be used up by the kinds of calls and sizes that one process makes.
        """
        for block in self.repeated_blocks():
            block.compile(**{"recompile_limit": 64, **torch_compile_kwargs})

    def decompile_repeated_blocks(self) -> None:
        """Run the layers eagerly again. Graphs that were compiled stay in torch's own cache."""
        for block in self.repeated_blocks():
            block._compiled_call_impl = None

    def repeated_blocks(self) -> list[Any]:
        """All layers of the language model and of the ViT."""
        # By the names of base classes too: sharding gives a layer a class of its own.
        return [
            module
            for module in self.modules()
            if any(base.__name__ in self._repeated_blocks for base in type(module).__mro__)
        ]
