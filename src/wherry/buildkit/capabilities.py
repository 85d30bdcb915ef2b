"""What this engine can do, in BuildKit's words. Only what is true stands here: clients fall back on what is missing."""

from wherry.buildkit import bk_pb2 as pb

LLB = """
source.image source.image.resolvemode source.image.checksum
source.local source.local.unique source.local.sessionid source.local.includepatterns source.local.followpaths
source.local.excludepatterns source.local.sharedkeyhint source.local.differ
source.git source.git.keepgitdir source.git.fullurl source.git.httpauth source.git.mountsshsock source.git.subdir
source.git.checksum
source.http source.http.auth source.http.checksum source.http.perm soruce.http.uidgid
source.ocilayout
exec.meta.base exec.meta.cgroup.parent exec.meta.network exec.meta.proxyenv exec.meta.security
exec.meta.security.devices.v1 exec.meta.setsdefaultpath exec.meta.ulimit exec.meta.removemountstubs.recursive
exec.mount.bind exec.mount.bind.readwrite-nooutput exec.mount.cache exec.mount.cache.sharing exec.mount.selector
exec.mount.tmpfs exec.mount.tmpfs.size exec.mount.secret exec.mount.ssh exec.cgroup exec.secretenv exec.validexitcode
file.base file.rm.wildcard file.copy.includeexcludepatterns file.copy.alwaysreplaceexistingdestpaths
file.copy.modestring file.symlink.create
constraints platform meta.ignorecache meta.description meta.exportcache
mergeop diffop
exporter.image.attestations exporter.image.annotations exporter.sourcedateepoch exporter.multiple
""".split()

FRONTEND = """
solve.base solve.inlinereturn resolveimage resolveimage.resolvemode readfile return returnmap readdir statfile
importcaches proto.refarray reference.output frontend.inputs gateway.solve.metadata frontend.caps
gateway.solve.evaluate gateway.evaluate gateway.warnings source.metaresolver
""".split()


def announced(names: list[str]) -> list[pb.APICap]:
    return [pb.APICap(id=name, enabled=True) for name in names]
