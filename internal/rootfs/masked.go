package rootfs

import (
	"os"
	"path/filepath"
	"slices"

	"golang.org/x/sys/unix"
)

// Directories of /proc with files of the host. The settings of the network are
// the container's own.
var looksOfProc = []string{
	"/proc", "/proc/tty", "/proc/bus", "/proc/fs", "/proc/sys/kernel", "/proc/sys/kernel/usermodehelper", "/proc/sys/kernel/keys",
	"/proc/sys/vm", "/proc/sys/fs", "/proc/sys/debug", "/proc/sys/dev",
}

// masked lists what of /proc has to be hidden: the container's uid 0 is the
// host's, an owner needs no capability to read its file, and no overlay takes
// /proc. What can only be written is left: the runtime mounts it read-only.
func masked() []string {
	var paths []string
	for _, dir := range looksOfProc {
		for _, name := range names(dir) {
			path := filepath.Join(dir, name)
			var st unix.Stat_t
			if name[0] > '9' && unix.Lstat(path, &st) == nil && closed(&st) && st.Mode&0o400 != 0 {
				paths = append(paths, path)
			}
		}
	}
	slices.Sort(paths)
	return paths
}

// names lists a directory; one that is not there has none.
func names(dir string) []string {
	f, err := os.Open(dir)
	if err != nil {
		return nil
	}
	defer f.Close()
	all, _ := f.Readdirnames(-1) // what a kernel will not list, it has not
	return all
}

// closed reports whether a user who is neither the owner nor of the group can
// not read a file, or not both list and enter a directory.
func closed(st *unix.Stat_t) bool {
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFLNK:
		return false
	case unix.S_IFDIR:
		return st.Mode&0o005 != 0o005
	}
	return st.Mode&0o004 == 0
}
