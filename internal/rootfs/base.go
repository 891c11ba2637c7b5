package rootfs

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"berth"

	"golang.org/x/sys/unix"
)

// baseDirs are the directories of "/" that a container finds empty.
var baseDirs = []struct {
	path string
	mode uint32
}{
	{"dev", 0o755}, {"home", 0o755}, {"media", 0o755}, {"mnt", 0o755}, {"proc", 0o555}, {"root", 0o700}, {"run", 0o755},
	{"run/lock", 0o1777}, {"srv", 0o755}, {"sys", 0o555}, {"sys/devices", 0o555},
	{"sys/devices/system", 0o555}, {"sys/fs", 0o555}, {"sys/fs/cgroup", 0o555}, {"tmp", 0o1777}, {"var", 0o755}, {"var/cache", 0o755},
	{"var/lib", 0o755}, {"var/log", 0o755}, {"var/spool", 0o755}, {"var/tmp", 0o1777},
}

// baseLinks are the links of "/" beside those of the host.
var baseLinks = []link{{"var/run", "/run"}, {"var/lock", "/run/lock"}}

// makeBase makes "/": the directories and links every container has, and the
// places of the trees.
func makeBase(at string, all []tree, links []link) error {
	for _, d := range baseDirs {
		if err := mkdir(filepath.Join(at, d.path), d.mode); err != nil {
			return err
		}
	}
	for _, l := range append(links, baseLinks...) {
		if err := os.Symlink(l.target, filepath.Join(at, l.name)); err != nil {
			return err
		}
	}
	root, err := unix.Open(at, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return &os.PathError{Op: "open", Path: at, Err: err}
	}
	defer unix.Close(root)
	for _, t := range all {
		if t.mounted {
			continue // its place is in another tree
		}
		if err := mkdirAllIn(root, t.path); err != nil {
			return fmt.Errorf("make a place for %s: %w", t.path, err)
		}
	}
	return nil
}

// mkdirAllIn makes a directory and those on the way to it. Links, as /var/run,
// are followed as if root were "/".
func mkdirAllIn(root int, path string) error {
	fd, err := openIn(root, path)
	if err == nil {
		return unix.Close(fd)
	} else if !errors.Is(err, unix.ENOENT) {
		return err
	}
	dir, name := filepath.Split(path)
	dir = filepath.Clean(dir)
	if err := mkdirAllIn(root, dir); err != nil {
		return err
	}
	fd, err = openIn(root, dir)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	if err := unix.Mkdirat(fd, name, 0o700); errors.Is(err, unix.EEXIST) {
		return fmt.Errorf("%s is a symbolic link to nothing: %w", path, berth.ErrInvalid)
	} else if err != nil {
		return err
	}
	return unix.Fchmodat(fd, name, 0o755, 0)
}

// openIn opens a directory of a root. Its links do not lead out of it.
func openIn(root int, path string) (int, error) {
	how := unix.OpenHow{Flags: unix.O_PATH | unix.O_DIRECTORY | unix.O_CLOEXEC, Resolve: unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_MAGICLINKS}
	return unix.Openat2(root, path, &how)
}

// makeEtc makes what lies over the host's /etc: the three files that the
// runtime mounts over, which are links on some hosts; mtab; and passwords, which
// the host's are not readable, but su, cron and useradd stop without. Every
// account of them is locked.
func makeEtc(at, etc string) error {
	for _, name := range []string{"hosts", "hostname", "resolv.conf"} {
		if err := write(filepath.Join(at, name), nil, 0o644); err != nil {
			return err
		}
	}
	if err := os.Symlink("../proc/self/mounts", filepath.Join(at, "mtab")); err != nil {
		return err
	}
	for _, f := range []struct{ from, to, rest string }{
		{"passwd", "shadow", ":*:19000:0:99999:7:::\n"}, {"group", "gshadow", ":*::\n"},
	} {
		names, err := os.ReadFile(filepath.Join(etc, f.from))
		if errors.Is(err, fs.ErrNotExist) {
			continue
		} else if err != nil {
			return err
		}
		if err := write(filepath.Join(at, f.to), locked(names, f.rest), 0o640); err != nil {
			return err
		}
	}
	return nil
}

// write writes a file with just this mode, whatever the umask.
func write(path string, content []byte, mode os.FileMode) error {
	if err := os.WriteFile(path, content, 0o600); err != nil {
		return err
	}
	return os.Chmod(path, mode)
}

// locked has a line for each account of a passwd or group file.
func locked(accounts []byte, rest string) []byte {
	var b bytes.Buffer
	for line := range bytes.Lines(accounts) {
		name, _, ok := bytes.Cut(line, []byte(":"))
		if ok && len(name) > 0 && !bytes.ContainsAny(name[:1], "#+-") {
			b.Write(name)
			b.WriteString(rest)
		}
	}
	return b.Bytes()
}
