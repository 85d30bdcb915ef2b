"""COPY, ADD and WORKDIR: files that come into the stage's tree."""

import posixpath
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from urllib.parse import unquote, urlsplit

from wherry.builder.dockerfile.convert.drawing import Draft, Tree, use
from wherry.builder.dockerfile.convert.naming import MARK
from wherry.builder.dockerfile.convert.scope import Reader
from wherry.builder.dockerfile.convert.state import Building, Step
from wherry.builder.dockerfile.errors import DockerfileError, quoted, shortened
from wherry.builder.dockerfile.instructions import Add, Copy, Transfer, Workdir
from wherry.builder.dockerfile.parser import Heredoc
from wherry.builder.graph import NO_INPUT, Files, FileStep, GitSource, HttpSource, MakeDirectory, MakeFile, Owner
from wherry.builder.graph import Copy as CopyAction
from wherry.digest import Digest, is_digest

UNNAMED = "__unnamed__"  # what is downloaded from an address that names no file
_OCTAL = re.compile(r"0*[0-7]{1,4}\Z")

Lookup = Callable[[str], Tree]  # what a `--from=` is called -> its tree


def absolute(directory: str, path: str) -> str:
    """`path` seen from `directory`, without `.`, `..` and doubled slashes; never above the root."""
    return posixpath.normpath("/" + posixpath.join(directory or "/", path).lstrip("/"))


def target_path(directory: str, path: str) -> str:
    """The same for what is copied to: a slash at the end stays, for it says "a directory"."""
    found = absolute(directory, path)
    slash = path in ("", ".") or path.endswith(("/", "/."))
    return found + "/" if slash and found != "/" else found


def workdir(building: Building, step: Step, instruction: Workdir) -> None:
    """The directory is made, unless it is the root. Raises InvalidParameter."""
    reader = building.reader()
    said = reader.text(instruction.path)
    path = absolute(building.config.working_dir, said)
    kept = said if said.startswith("/") else path  # an absolute one as it is written
    building.change(working_dir=kept)
    if path == "/":
        building.tell(f"WORKDIR {kept}")
        return
    owner = parse_owner(building.config.user)
    make = FileStep(action=MakeDirectory(path=path, parents=True, owner=owner), input=0, output=0)
    name = building.step_name(step)
    draft = building.add(step, Files(steps=(make,)), [building.tree], name=name, args=_used(building, reader))
    building.tell(f"WORKDIR {kept}", layer=draft)


def transfer(building: Building, step: Step, instruction: Transfer, lookup: Lookup) -> None:
    """Add the step to the stage. Raises InvalidParameter."""
    reader = building.reader()
    maker = _Maker(building, instruction, reader, building.step_name(step))
    paths = [reader.text(path) for path in instruction.paths]
    if isinstance(instruction, Add) and (checksum := reader.text(instruction.checksum)):
        maker.expect(checksum, paths)
    documents = [source for source in instruction.sources if isinstance(source, Heredoc)]
    maker.write(documents)
    for path in paths:
        maker.copy(path, lookup)
    for document in documents:
        maker.copy_document(document)
    op = Files(steps=maker.steps(), linked=instruction.link and _is_number(maker.owner))
    draft = building.add(step, op, maker.inputs, name=maker.name, args=_used(building, reader))
    building.tell(_history(instruction, maker, paths, documents), layer=draft)


def _used(building: Building, reader: Reader) -> Mapping[str, str]:
    """Build arguments that the words of an instruction took."""
    return {name: value for name, value in building.scope.build_args.items() if name in reader.used}


def _history(instruction: Transfer, maker: "_Maker", paths: Sequence[str], documents: Sequence[Heredoc]) -> str:
    parents = isinstance(instruction, Copy) and instruction.parents
    words = [
        instruction.name,
        *(["--parents"] if parents else []),
        *([f"--chown={maker.chown}"] if maker.chown else []),
        *([f"--chmod={maker.chmod}"] if maker.chmod else []),
        *paths,
        *(f"<<{document.name}" for document in documents),
        maker.said_target,
    ]
    return " ".join(words) + MARK


@dataclass(slots=True)
class _Maker:
    """Collects the steps and inputs of one instruction. Files with texts are made first, then all is copied."""

    building: Building
    instruction: Transfer
    reader: Reader
    name: str
    inputs: list[Tree] = field(default_factory=list)
    chown: str = ""
    chmod: str = ""
    said_target: str = ""
    target: str = ""
    exclude: tuple[str, ...] = ()
    owner: Owner | None = None
    checksum: str = ""
    _texts: list[MakeFile] = field(default_factory=list)
    _copies: list[tuple[CopyAction, int]] = field(default_factory=list)  # with the input each takes from

    def __post_init__(self) -> None:
        read, instruction = self.reader.text, self.instruction
        self.inputs = [self.building.tree]
        self.chown = read(instruction.chown)
        self.owner = parse_owner(self.chown)
        self.chmod = parse_mode(read(instruction.chmod))
        self.exclude = tuple(map(read, instruction.exclude))
        self.said_target = read(instruction.target)
        self.target = target_path(self.building.config.working_dir, self.said_target)

    def expect(self, checksum: str, paths: Sequence[str]) -> None:
        """ADD --checksum."""
        if len(self.instruction.sources) != 1:
            raise DockerfileError("checksum can't be specified for multiple sources")
        if not paths or not (_is_address(paths[0]) or self.building.common.sources.git(paths[0]) is not None):
            raise DockerfileError("checksum requires HTTP(S) or Git sources")
        self.checksum = checksum

    def steps(self) -> tuple[FileStep, ...]:
        """Numbers up to the inputs' are inputs; those above are what the steps make, one after the other."""
        first = len(self.inputs)
        made = [
            FileStep(action=text, input=first + number - 1 if number else NO_INPUT)
            for number, text in enumerate(self._texts)
        ]
        copied = []
        for number, (action, source) in enumerate(self._copies, len(made)):
            before = first + number - 1 if number > len(made) else 0
            secondary = first + len(made) - 1 if source == NO_INPUT else source
            last = number == len(made) + len(self._copies) - 1
            copied.append(FileStep(action=action, input=before, secondary=secondary, output=0 if last else -1))
        return (*made, *copied)

    def _add(self, tree: Tree) -> int:
        for number, known in enumerate(self.inputs[1:], 1):
            if known is tree:
                return number
        self.inputs.append(tree)
        return len(self.inputs) - 1

    @property
    def several(self) -> bool:
        return len(self.instruction.sources) > 1

    # --- here-documents -----------------------------------------------------------------------------------------------

    def write(self, documents: Sequence[Heredoc]) -> None:
        """Make the files: in a tree of their own, from which they are copied like any other."""
        for document in documents:
            if posixpath.basename(document.name) in ("", ".", ".."):
                raise DockerfileError(f"invalid name of a here-document: {quoted(document.name)}")
            text = self.reader.document(document.text) if document.expand else document.text
            self._texts.append(MakeFile(path=_document_path(document), data=text.encode("utf-8", "surrogateescape")))

    def copy_document(self, document: Heredoc) -> None:
        action = CopyAction(
            source=_document_path(document),
            target=self.target,
            owner=self.owner,
            mode=self.chmod,
            wildcard=False,
            several=self.several,
            exclude=self.exclude,
        )
        self._copies.append((action, NO_INPUT))

    # --- paths and addresses ------------------------------------------------------------------------------------------

    def copy(self, path: str, lookup: Lookup) -> None:
        sources = self.building.common.sources
        add = self.instruction if isinstance(self.instruction, Add) else None
        keep = bool(add and add.keep_git_dir)
        git = sources.git(path, keep_git_directory=keep, checksum=self.checksum)
        if git is not None:
            self._repository(path, git, add)
        elif _is_address(path):
            self._download(path, add)
        else:
            self._local(path, lookup)

    def _repository(self, path: str, git: GitSource, add: Add | None) -> None:
        if add is None:
            raise DockerfileError("source can't be a git ref for COPY", near=path)
        if add.keep_git_dir is not None and add.keep_git_dir != git.keep_git_directory:
            raise DockerfileError("inconsistent keep-git-dir configuration", near=path)
        own = self.building.common.sources.git(path)
        if self.checksum and own is not None and own.checksum not in ("", self.checksum):
            raise DockerfileError(f"checksum mismatch {quoted(self.checksum)} != {quoted(own.checksum)}")
        self._copies.append((self._remote("/", contents=True), self._add(self._draft(git))))

    def _download(self, path: str, add: Add | None) -> None:
        if add is None:
            raise DockerfileError("source can't be a URL for COPY", near=path)
        checksum = parse_checksum(self.checksum) if self.checksum else None
        name = file_name(path)
        draft = self._draft(HttpSource(url=path, filename=name, checksum=checksum))
        self._copies.append((self._remote(f"/{name}", unpack=bool(add.unpack)), self._add(draft)))

    def _draft(self, op: GitSource | HttpSource) -> Draft:
        building = self.building
        draft = Draft(op=op, name=self.name, platform=building.platform, location=self.instruction.location)
        return building.common.drawing.add(draft)

    def _remote(self, source: str, *, contents: bool = False, unpack: bool = False) -> CopyAction:
        return CopyAction(
            source=source,
            target=self.target,
            owner=self.owner,
            mode=self.chmod,
            contents=contents,
            unpack=unpack,
            wildcard=False,
            several=self.several,
            exclude=self.exclude,
        )

    def _local(self, path: str, lookup: Lookup) -> None:
        instruction = self.instruction
        stage = instruction.source_stage if isinstance(instruction, Copy) else ""
        tree = lookup(stage) if stage else self.building.common.sources.context()
        use(tree, path)
        parents = isinstance(instruction, Copy) and instruction.parents
        unpack = isinstance(instruction, Add) and instruction.unpack is not False
        action = CopyAction(
            source=path if parents else absolute("/", path),  # the pivot "/./" of --parents stays
            target=self.target,
            owner=self.owner,
            mode=self.chmod,
            follow_symlink=True,
            contents=True,
            unpack=unpack,
            empty_wildcard=True,
            parents=parents,
            several=self.several and not parents,
            exclude=self.exclude,
        )
        self._copies.append((action, self._add(tree)))


def parse_checksum(text: str) -> Digest:
    if is_digest(text):
        return Digest(text)
    if not text.startswith("sha256:"):
        raise DockerfileError("unsupported digest algorithm", near=text)
    wrong = "format" if len(text) == len("sha256:") + 64 else "length"
    raise DockerfileError(f"invalid checksum digest {wrong}", near=text)


def _document_path(document: Heredoc) -> str:
    return "/" + posixpath.basename(document.name)


def _is_address(path: str) -> bool:
    return path.startswith(("http://", "https://"))


def file_name(url: str) -> str:
    """What a file from `url` is called: the last name of its path."""
    try:
        name = posixpath.basename(unquote(urlsplit(url).path))
    except ValueError:
        return UNNAMED
    return UNNAMED if name in ("", ".", "..") or "\0" in name else name


def parse_owner(text: str) -> Owner | None:
    """`user[:group]`, each by name or number; None for ""."""
    user, _, group = text.partition(":")
    return Owner(user=user or "0", group=group) if text else None


def _is_number(owner: Owner | None) -> bool:
    """No name must be looked up in the tree: the layer can be made without it."""
    return owner is None or (owner.user.isdecimal() and (not owner.group or owner.group.isdecimal()))


def parse_mode(text: str) -> str:
    """`--chmod`: octal, or symbolic, which is understood when it is applied."""
    if text.isdecimal() and _OCTAL.match(text) is None:
        raise DockerfileError(
            f"invalid chmod parameter: '{shortened(text)}'. it should be octal string and between 0 and 07777"
        )
    return text
