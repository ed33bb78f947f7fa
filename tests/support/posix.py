"""POSIX behaviour of the current directory, which is on the file system under test.

Argument: `own` where the server is ours (it has fallocate, SEEK_HOLE), else `foreign`.
Prints what it has checked; the first thing that is not as it should be is an exception.
"""

import ctypes
import errno
import os
import socket
import stat
import sys
import time

own = sys.argv[1] == "own"
libc = ctypes.CDLL(None, use_errno=True)


def fails(number, call, *arguments, **named):
    try:
        result = call(*arguments, **named)
    except OSError as error:
        assert error.errno == number, (call, arguments, error, errno.errorcode[number])
        return
    raise AssertionError((call, arguments, "returned", result, errno.errorcode[number]))


def put(name, data=b"", mode=0o644):
    fd = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode)
    os.write(fd, data)
    os.close(fd)


def renameat2(old, new, flags):
    if libc.renameat2(-100, os.fsencode(old), -100, os.fsencode(new), flags) != 0:
        raise OSError(ctypes.get_errno(), "renameat2")


def check_names():
    fails(errno.ENAMETOOLONG, put, "x" * 256)
    put("x" * 255)
    os.unlink("x" * 255)
    for name in (b"\xff\xfe", b"a\nb", b" ", b"...", "é".encode(), b"-n"):
        put(name, name)
        assert name in os.listdir(b"."), name
        assert open(name, "rb").read() == name
        os.unlink(name)
    fails(errno.ENOENT, os.stat, "none")
    put("file")
    fails(errno.ENOTDIR, os.stat, "file/x")
    fails(errno.ENOENT, os.unlink, "none")
    os.unlink("file")


def check_creation():
    fd = os.open("new", os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o4751)
    info = os.fstat(fd)
    assert stat.S_IMODE(info.st_mode) == 0o4751 & ~umask, oct(info.st_mode)
    assert info.st_size == 0 and info.st_nlink == 1
    assert abs(info.st_mtime - time.time()) < 60, "times of an exclusive create"
    fails(errno.EEXIST, os.open, "new", os.O_CREAT | os.O_EXCL)
    os.write(fd, b"12345")
    os.close(fd)
    os.close(os.open("new", os.O_RDONLY | os.O_CREAT))
    assert os.stat("new").st_size == 5, "O_CREAT keeps what is there"
    os.close(os.open("new", os.O_WRONLY | os.O_TRUNC))
    assert os.stat("new").st_size == 0
    fd = os.open("new", os.O_WRONLY | os.O_APPEND)
    os.write(fd, b"ab")
    os.lseek(fd, 0, 0)
    os.write(fd, b"cd")
    os.close(fd)
    assert open("new", "rb").read() == b"abcd"
    fd = os.open("sealed", os.O_RDWR | os.O_CREAT, 0o400)
    os.write(fd, b"by its creator")
    os.ftruncate(fd, 2)
    os.fsync(fd)
    os.close(fd)
    assert open("sealed", "rb").read() == b"by"
    os.mkdir("dir", 0o2755)
    fails(errno.EEXIST, os.mkdir, "dir")
    fails(errno.EISDIR, os.open, "dir", os.O_WRONLY)
    fails(errno.EISDIR, os.unlink, "dir")
    fails(errno.ENOTDIR, os.rmdir, "new")
    os.rmdir("dir")
    os.unlink("sealed")
    os.unlink("new")


def check_nodes():
    os.symlink("a/target that is not there", "link")
    assert os.readlink("link") == "a/target that is not there"
    assert os.lstat("link").st_size == len("a/target that is not there")
    fails(errno.ENOENT, os.stat, "link")
    os.symlink("x" * 4000, "long")
    assert len(os.readlink("long")) == 4000
    os.symlink("loop", "loop")
    fails(errno.ELOOP, os.stat, "loop")
    os.mkfifo("fifo", 0o600)
    assert stat.S_ISFIFO(os.stat("fifo").st_mode)
    server = socket.socket(socket.AF_UNIX)
    server.bind("socket")
    assert stat.S_ISSOCK(os.stat("socket").st_mode)
    server.close()
    put("one", b"data")
    os.link("one", "two")
    assert os.stat("one").st_nlink == os.stat("two").st_nlink == 2
    assert os.path.samefile("one", "two")
    fails(errno.EEXIST, os.link, "one", "two")
    os.unlink("one")
    assert os.stat("two").st_nlink == 1 and open("two", "rb").read() == b"data"
    for name in ("link", "long", "loop", "fifo", "socket", "two"):
        os.unlink(name)


def check_attributes():
    put("f", b"0123456789")
    os.chmod("f", 0o640)
    assert stat.S_IMODE(os.stat("f").st_mode) == 0o640
    when = (981173106 * 10**9 + 123456789, 4102444799 * 10**9 + 987654321)
    os.utime("f", ns=when)
    info = os.stat("f")
    assert (info.st_atime_ns, info.st_mtime_ns) == when, info
    before = os.stat("f").st_ctime_ns
    time.sleep(0.02)
    os.utime("f")
    info = os.stat("f")
    assert info.st_ctime_ns > before and abs(info.st_mtime - time.time()) < 60
    fd = os.open("f", os.O_RDWR)
    os.write(fd, b"abc")
    os.utime("f", ns=when)
    os.close(fd)
    time.sleep(1.2)
    assert os.stat("f").st_mtime_ns == when[1], "a late write changed the time that was set"
    os.truncate("f", 4)
    assert open("f", "rb").read() == b"abc3"
    os.truncate("f", 8)
    assert open("f", "rb").read() == b"abc3\0\0\0\0"
    os.chown("f", os.getuid(), os.getgid())
    assert os.access("f", os.R_OK | os.W_OK)
    info = os.statvfs(".")
    assert info.f_blocks > 0 and info.f_namemax == 255, info
    for call in (lambda: os.setxattr("f", "user.x", b"1"), lambda: os.getxattr("f", "user.x")):
        fails(errno.EOPNOTSUPP, call)
    os.unlink("f")


def check_rename():
    put("a", b"a")
    put("b", b"b")
    os.rename("a", "b")
    assert open("b", "rb").read() == b"a"
    fails(errno.ENOENT, os.rename, "a", "b")
    put("a", b"new")
    fails(errno.EEXIST, renameat2, "a", "b", 1)
    renameat2("a", "c", 1)
    assert open("c", "rb").read() == b"new" and not os.path.exists("a")
    fails(errno.EINVAL, renameat2, "b", "c", 2)
    os.makedirs("d1/sub")
    os.mkdir("d2")
    fails(errno.EEXIST, renameat2, "d1", "d2", 1)
    os.rename("d1", "d2")
    assert os.path.isdir("d2/sub")
    fails(errno.EINVAL, os.rename, "d2", "d2/sub/x")
    os.mkdir("d1")
    fails(errno.ENOTEMPTY, os.rename, "d1", "d2")
    fails(errno.EISDIR, os.rename, "b", "d1")
    fails(errno.ENOTDIR, os.rename, "d1", "b")
    fails(errno.ENOTEMPTY, os.rmdir, "d2")
    os.rename("b", "d2/sub/b")
    assert os.listdir("d2/sub") == ["b"]
    links = os.stat("d2").st_nlink
    os.rmdir("d1")
    os.unlink("d2/sub/b")
    os.rmdir("d2/sub")
    assert os.stat("d2").st_nlink == links - 1
    os.rmdir("d2")
    os.unlink("c")


def check_directories():
    os.mkdir("d")
    names = {"n%04d" % number for number in range(1500)}
    for name in names:
        put("d/" + name)
    listed = os.listdir("d")
    assert len(listed) == len(names) and set(listed) == names
    with os.scandir("d") as entries:
        for entry in entries:
            assert entry.is_file() and entry.inode() == entry.stat().st_ino
            os.unlink(entry.path)  # Removing while listing must not skip any.
    assert os.listdir("d") == []
    fd = os.open("d", os.O_RDONLY | os.O_DIRECTORY)
    os.fsync(fd)
    os.close(fd)
    os.rmdir("d")


def check_as_another_user():
    os.chmod(".", 0o777)
    put("theirs", b"x", 0o600)
    put("setuid", b"x")
    os.chmod("setuid", 0o6777)
    os.mkdir("sticky")
    os.chmod("sticky", 0o1777)
    put("sticky/mine", b"x")
    child = os.fork()
    if child == 0:
        os.setgroups([12345])
        os.setgid(65534)
        os.setuid(65534)
        try:
            fails(errno.EACCES, os.open, "theirs", os.O_RDONLY)
            fails(errno.EPERM, os.chmod, "theirs", 0o666)
            fails(errno.EPERM, os.utime, "theirs", ns=(1, 1))
            fails(errno.EPERM, os.unlink, "sticky/mine")
            put("sticky/own", b"x")
            assert os.stat("sticky/own").st_uid == 65534
            with open("setuid", "r+b") as file:
                file.write(b"y")
            kept = os.stat("setuid").st_mode & 0o6000
            assert kept == 0, "set-id bits survive a write"
        except BaseException as error:
            print(repr(error), file=sys.stderr)
            os._exit(1)
        os._exit(0)
    assert os.wait()[1] == 0, "as another user"
    os.chown("sticky/own", 1234, 5678)
    info = os.stat("sticky/own")
    assert (info.st_uid, info.st_gid) == (1234, 5678)
    for name in ("sticky/own", "sticky/mine", "theirs", "setuid"):
        os.unlink(name)
    os.rmdir("sticky")


umask = os.umask(0o022)
umask = 0o022
checks = [check_names, check_creation, check_nodes, check_attributes, check_rename, check_directories]
if os.getuid() == 0:
    checks.append(check_as_another_user)
for check in checks:
    check()
    assert os.listdir(".") == [], (check.__name__, "left", os.listdir("."))
    print(check.__name__, "ok")
