package hostroot

import (
	"os"
	"path/filepath"
	"slices"

	"golang.org/x/sys/unix"
)

// What a container keeps of directories of /sys: what a program asks to know
// its processors, its links and its limits. The rest are files of the hardware
// and of the kernel, many of them its uid 0's own.
var keptOfSys = map[string][]string{
	"/sys":                 {"block", "class", "dev", "devices", "fs"},
	"/sys/devices":         {"system", "virtual"},
	"/sys/devices/virtual": {"net"},
	"/sys/fs":              {"cgroup"},
}

// Directories of /proc with files of the host. The settings of the network are
// the container's own.
var looksOfProc = []string{
	"/proc", "/proc/tty", "/proc/bus", "/proc/fs", "/proc/sys/kernel", "/proc/sys/kernel/usermodehelper", "/proc/sys/kernel/keys",
	"/proc/sys/vm", "/proc/sys/fs", "/proc/sys/debug", "/proc/sys/dev",
}

// masked lists what of /proc and /sys has to be hidden: the container's uid 0
// is the host's, an owner needs no capability to read its file, and no overlay
// can stand before these.
func masked() []string {
	var paths []string
	for dir, kept := range keptOfSys {
		for _, name := range names(dir) {
			if !slices.Contains(kept, name) {
				paths = append(paths, filepath.Join(dir, name))
			}
		}
	}
	for _, dir := range looksOfProc {
		for _, name := range names(dir) {
			path := filepath.Join(dir, name)
			var st unix.Stat_t
			if name[0] > '9' && unix.Lstat(path, &st) == nil && closed(&st) {
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
