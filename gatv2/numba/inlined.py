"""The compiler of what is inlined: code is made of it once, in the kernel, and not by itself before.

Numba optimises each function that another one calls, with all that it calls in turn, and makes machine
code of it. Of a function that is always inlined nobody ever runs that code, and a first call would wait
for it.
"""

from typing import Any

from numba import _dynfunc
from numba.core import codegen, compiler, compiler_machinery, typed_passes, untyped_passes


class _LinkedLibrary(codegen.JITCodeLibrary):  # type: ignore[misc]
    """LLVM code to be linked into other code, as it was written."""

    def _optimize_final_module(self) -> None:
        pass

    def _finalize_final_module(self) -> None:
        self._finalized = True


@compiler_machinery.register_pass(mutates_CFG=False, analysis_only=True)
class _SetLibrary(compiler_machinery.FunctionPass):  # type: ignore[misc]
    _name = "gatv2_set_library"

    def __init__(self) -> None:
        super().__init__()

    def run_pass(self, state: Any) -> bool:
        """Choose what code is written to; Numba does so only where nobody has."""
        name = state.func_id.func_qualname
        state.library = _LinkedLibrary(state.targetctx.codegen(), name)
        state.library.enable_object_caching()
        state.flags.no_compile = True
        return True


@compiler_machinery.register_pass(mutates_CFG=False, analysis_only=True)
class _Register(compiler_machinery.LoweringPass):  # type: ignore[misc]
    _name = "gatv2_register"

    def __init__(self) -> None:
        super().__init__()

    def run_pass(self, state: Any) -> bool:
        """Let others call the code: they know it by a function, which Python can't call."""
        code = state.cr.fndesc
        module, name, address = code.lookup_module(), code.qualname, 0
        function = _dynfunc.make_function(
            module, name, "inlined", address, state.cr.env, (state.library,)
        )
        state.targetctx.insert_user_function(function, code, [state.library])
        state.cr = state.cr._replace(cfunc=function)
        return True


class InlinedCompiler(compiler.CompilerBase):  # type: ignore[misc]
    """What `numba.njit` takes as `pipeline_class`."""

    def define_pipelines(self) -> list[object]:
        """Numba's own pipeline, with another library for the code."""
        pipeline = compiler.DefaultPassBuilder.define_nopython_pipeline(self.state)
        pipeline.add_pass_after(_SetLibrary, untyped_passes.TranslateByteCode)
        pipeline.add_pass_after(_Register, typed_passes.NativeLowering)
        pipeline.finalize()
        return [pipeline]
