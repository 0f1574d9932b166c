"""The compiler of what is inlined: LLVM optimises it once, in the kernel, and not by itself before.

Numba optimises each function that another one calls, with all that it calls in turn. Of a function that
is always inlined nobody ever runs that code, and a first call would wait for it.
"""

from typing import Any

from numba.core import codegen, compiler, compiler_machinery, untyped_passes


class _UnoptimizedLibrary(codegen.JITCodeLibrary):  # type: ignore[misc]
    """LLVM code to be linked into other code, as it was written."""

    def _optimize_final_module(self) -> None:
        pass


@compiler_machinery.register_pass(mutates_CFG=False, analysis_only=True)
class _SetLibrary(compiler_machinery.FunctionPass):  # type: ignore[misc]
    _name = "gatv2_set_library"

    def __init__(self) -> None:
        super().__init__()

    def run_pass(self, state: Any) -> bool:
        """Choose what code is written to; Numba does so only where nobody has."""
        name = state.func_id.func_qualname
        state.library = _UnoptimizedLibrary(state.targetctx.codegen(), name)
        state.library.enable_object_caching()
        return True


class InlinedCompiler(compiler.CompilerBase):  # type: ignore[misc]
    """What `numba.njit` takes as `pipeline_class`."""

    def define_pipelines(self) -> list[Any]:
        """Numba's own pipeline, with another library for the code."""
        pipeline = compiler.DefaultPassBuilder.define_nopython_pipeline(self.state)
        pipeline.add_pass_after(_SetLibrary, untyped_passes.TranslateByteCode)
        pipeline.finalize()
        return [pipeline]
