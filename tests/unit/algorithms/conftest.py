"""The first call of a torch function is slow on a busy machine; that is no failure."""

import hypothesis

hypothesis.settings.register_profile("torch", deadline=None)
hypothesis.settings.load_profile("torch")
