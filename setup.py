"""What pyproject.toml cannot say: the folder search_spaces of the repository is installed inside the package."""

from setuptools import find_namespace_packages, setup

setup(
    packages=[*find_namespace_packages(include=["bft_ray*"]), "bft_ray.search_spaces", "bft_ray.search_spaces.series"],
    package_dir={"bft_ray.search_spaces": "search_spaces", "bft_ray.search_spaces.series": "search_spaces/series"},
)
