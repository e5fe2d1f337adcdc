"""What is missing is named with the command that installs it."""

import pytest

from bitwright.errors import BitwrightError
from bitwright.host.packages import WHEELS, pip_install, require_package


@pytest.mark.parametrize("package", [*WHEELS.values(), "openpyxl", "peft", "xllamacpp"])
def test_packages_are_named_in_the_versions_that_our_extras_ask_for(package: str) -> None:
    assert pip_install(package).startswith(f"pip install '{package}")
    assert "<" in pip_install(package)


def test_a_package_that_nothing_is_known_of_is_named_alone() -> None:
    assert pip_install("torchvision", "pillow").startswith("pip install torchvision 'pillow")


def test_what_is_missing_is_said_with_the_command() -> None:
    with pytest.raises(BitwrightError, match="pip install a_package_that_nobody_has"):
        require_package("tasks/package", "--tasks", "a_package_that_nobody_has", "it runs them")
