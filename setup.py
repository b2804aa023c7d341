"""What pyproject.toml cannot say: the folder search_spaces of the repository is installed inside the package."""

from setuptools import find_namespace_packages, setup

FOLDERS = ["bft_ray.search_spaces", "bft_ray.search_spaces.series", "bft_ray.search_spaces.after_rl"]

setup(
    packages=[*find_namespace_packages(include=["bft_ray*"]), *FOLDERS],
    package_dir={name: name.removeprefix("bft_ray.").replace(".", "/") for name in FOLDERS},
)
