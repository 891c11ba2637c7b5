package oci

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"syscall"

	"golang.org/x/sys/unix"

	"berth"
)

// Capabilities is the set that this process can give to a container, for
// [Host.Caps]: its bounding set. A host that is a container or a bounded
// service itself has not got all.
func Capabilities() (set uint64, err error) {
	for i := range allCaps {
		has, err := unix.PrctlRetInt(unix.PR_CAPBSET_READ, uintptr(i), 0, 0, 0)
		if err == unix.EINVAL {
			break // the kernel knows no more
		}
		if err != nil {
			return 0, fmt.Errorf("read capability %s of this process: %w", allCaps[i], err)
		}
		set |= uint64(has) << i
	}
	return set, nil
}

// notDevices are the places of /dev that the container has of its own.
var notDevices = []string{"/dev/pts", "/dev/shm", "/dev/mqueue", "/dev/fd", "/dev/console", "/dev/ptmx"}

// Devices looks up device nodes of the host by their paths, for
// [Host.Devices]. Of a directory, all below it are meant; symbolic links are
// followed only where they are named. Errors match [berth.ErrNotFound] and, for
// what is no device, [berth.ErrInvalid].
func Devices(paths ...string) (map[string]Node, error) {
	nodes := map[string]Node{}
	for _, name := range paths {
		info, err := os.Stat(name)
		switch {
		case errors.Is(err, fs.ErrNotExist):
			return nil, fmt.Errorf("device %s: %w", name, ErrAbsent)
		case err != nil:
			return nil, fmt.Errorf("device: %w", err)
		case info.IsDir():
			if err := walkDevices(name, nodes); err != nil {
				return nil, fmt.Errorf("devices in %s: %w", name, err)
			}
			continue
		}
		n, ok := node(info)
		if !ok {
			return nil, fmt.Errorf("device %s: %w: it is no device", name, berth.ErrInvalid)
		}
		nodes[name] = n
	}
	return nodes, nil
}

func walkDevices(dir string, nodes map[string]Node) error {
	// With a slash the directory is walked even if dir is a link to it.
	return filepath.WalkDir(filepath.Clean(dir)+"/", func(name string, d fs.DirEntry, err error) error {
		// It is gone since it was listed, as when a disk is pulled.
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err != nil {
			return err
		}
		if slices.Contains(notDevices, name) {
			if d.IsDir() {
				return fs.SkipDir
			}
			return nil
		}
		info, err := d.Info()
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err != nil {
			return err
		}
		if n, ok := node(info); ok {
			nodes[name] = n
		}
		return nil
	})
}

// node is what a file is as a device, if it is one.
func node(info fs.FileInfo) (Node, bool) {
	st, ok := info.Sys().(*syscall.Stat_t)
	if !ok || info.Mode()&fs.ModeDevice == 0 {
		return Node{}, false
	}
	n := Node{
		Type: "b", Major: int64(unix.Major(uint64(st.Rdev))), Minor: int64(unix.Minor(uint64(st.Rdev))),
		Mode: info.Mode().Perm(), UID: st.Uid, GID: st.Gid,
	}
	if info.Mode()&fs.ModeCharDevice != 0 {
		n.Type = "c"
	}
	return n, true
}
