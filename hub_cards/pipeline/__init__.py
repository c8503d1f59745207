"""The files that an exported diffusers pipeline carries: they run from its folder, without this package."""
