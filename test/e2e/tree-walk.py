# Walks mounted trees and prints all that can be observed of each as one JSON object a tree: path -> facts. Names are latin1 of their bytes.
# A name that readdir lists but that cannot be looked up (a whiteout in a directory that overlayfs does not merge) does not exist.
import hashlib, json, os, stat, sys

TYPES = {stat.S_IFREG: 'file', stat.S_IFDIR: 'dir', stat.S_IFLNK: 'symlink', stat.S_IFCHR: 'char', stat.S_IFBLK: 'block', stat.S_IFIFO: 'fifo', stat.S_IFSOCK: 'socket'}


def text(name):
    return name.decode('latin1')


def facts(path):
    s = os.lstat(path)
    kind = TYPES[stat.S_IFMT(s.st_mode)]
    found = {'type': kind, 'mode': stat.S_IMODE(s.st_mode), 'uid': s.st_uid, 'gid': s.st_gid, 'mtime': str(s.st_mtime_ns), 'inode': s.st_ino}
    if kind != 'dir':
        found['nlink'] = s.st_nlink
        found['size'] = s.st_size
    if kind in ('char', 'block'):
        found['device'] = '%d:%d' % (os.major(s.st_rdev), os.minor(s.st_rdev))
    if kind == 'symlink':
        found['link'] = text(os.readlink(path))
    if kind == 'file':
        digest = hashlib.sha256()
        with open(path, 'rb') as f:
            for piece in iter(lambda: f.read(1 << 20), b''):
                digest.update(piece)
        found['sha256'] = digest.hexdigest()
    names = sorted(os.listxattr(path, follow_symlinks=False))
    found['xattrs'] = {name: os.getxattr(path, name, follow_symlinks=False).hex() for name in names}
    return found


def walk(root):
    tree = {}
    todo = [(root, b'')]
    while todo:
        path, name = todo.pop()
        try:
            tree[text(name)] = facts(path)
        except FileNotFoundError:
            continue
        if tree[text(name)]['type'] == 'dir':
            for child in os.listdir(path):
                todo.append((os.path.join(path, child), os.path.join(name, child)))
    return tree


json.dump([walk(os.fsencode(root)) for root in sys.argv[1:]], sys.stdout)
