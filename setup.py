"""Everything that describes the package stands in settings.ini, for nbdev and for this file alike."""

from configparser import ConfigParser
from pathlib import Path

from setuptools import find_packages, setup

parser = ConfigParser(delimiters=["="], interpolation=None)
parser.read(Path(__file__).with_name("settings.ini"), encoding="utf-8")
cfg = parser["DEFAULT"]

PYTHONS = ("3.10", "3.11", "3.12", "3.13")
READERS = cfg["extras"].split()
EXTRAS = {extra: cfg[f"{extra}_requirements"].split() for extra in (*READERS, "dev", "docs", "bench", "experiments")}
EXTRAS["all"] = [package for extra in READERS for package in EXTRAS[extra]]
EXTRAS["experiments"] += EXTRAS["all"]
EXTRAS["dev"] += EXTRAS["experiments"]
STATUS = {"3": "3 - Alpha", "4": "4 - Beta", "5": "5 - Production/Stable"}

setup(
    name=cfg["lib_name"],
    version=cfg["version"],
    description=cfg["description"],
    long_description=Path(__file__).with_name("README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    author=cfg["author"],
    author_email=cfg["author_email"],
    url=cfg["git_url"],
    project_urls={
        "Documentation": cfg["doc_host"] + cfg["doc_baseurl"],
        "Changelog": f"{cfg['git_url']}/blob/{cfg['branch']}/CHANGELOG.md",
    },
    license_expression=cfg["license"].upper(),
    license_files=["LICENSE"],
    keywords=cfg["keywords"].split(),
    classifiers=[
        f"Development Status :: {STATUS[cfg['status']]}",
        f"Intended Audience :: {cfg['audience']}",
        f"Natural Language :: {cfg['language']}",
        "Operating System :: OS Independent",
        "Programming Language :: Python :: 3 :: Only",
        *(f"Programming Language :: Python :: {version}" for version in PYTHONS),
        "Topic :: Scientific/Engineering :: Medical Science Apps.",
        "Typing :: Typed",
    ],
    python_requires=f">={cfg['min_python']}",
    packages=find_packages(include=[cfg["lib_name"], cfg["lib_name"] + ".*"]),
    package_data={cfg["lib_name"]: ["py.typed", "viewer.html", "viewer.js", "report.html", "report.css", "report.js", "window.css"]},
    install_requires=cfg["requirements"].split(),
    extras_require=EXTRAS,
    entry_points={"console_scripts": cfg["console_scripts"].split(), "nbdev": [f"{cfg['lib_name']}={cfg['lib_name']}._modidx:d"]},  # the second: links in docs, ours and others'
    zip_safe=False,
)
