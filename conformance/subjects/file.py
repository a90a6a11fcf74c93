"""`conformance file`, this project's own reading of adapter files. It has no layers."""

NEEDS = ("conformance",)


def subject():
    from dataclasses import replace

    from conformance import __version__
    from conformance.files import reading
    from conformance.files.function_subject import FunctionSubject
    from conformance.files.readers.file import deltas

    def file(path, base, kinds):
        meaning = reading.read(path)
        reading.compare(meaning, {name: array.shape for name, array in base.items()})
        if not meaning.right:
            raise ValueError("; ".join(f"{issue.code} {issue.where}: {issue.words}" for issue in meaning.issues))
        turned = {module for module, kind in kinds.items() if kind == "conv1d"}  # the layer decides, not the file (P-7)
        names = {flat(meaning.format, module): module for module in kinds}
        meaning.parts = [replace(part, module=names[part.module]) if part.module in names else part for part in meaning.parts]
        meaning.parts = [replace(part, fan_in_fan_out=part.module in turned) for part in meaning.parts]
        return deltas(meaning, base)

    def flat(format: str, module: str) -> str:
        """The name of the module of the base in the format."""
        return {"kohya": f"lora_unet_{module.replace('.', '_')}", "diffusers": f"unet.{module}"}.get(format, module)

    class File(FunctionSubject):
        version = __version__

    return File(file)
