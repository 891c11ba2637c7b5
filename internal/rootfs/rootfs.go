// Package rootfs makes the root file system of a container where it is not a
// directory of the user's: over the layers of an image ([MountImage]), or over
// this host's own programs ([Mount]). Both are copy-on-write. What the
// container writes is in the directory that the caller keeps for it, where
// nobody else of the host can look; one system call mounts the root and one
// takes it away ([Unmount], [Remove]), and [ImageDiff] and [Diff] tell what was
// written.
//
// A container of an image sees the image's layers and nothing else. Of the host
// another sees what is on an allow-list: /usr /bin /sbin /lib* /opt and a
// filtered /etc, one overlay for each mount of the host; the rest of "/" is
// empty directories, unless a path is exposed, which gets an overlay too.
//
// What [Mount] guarantees: nothing below an allow-listed or an exposed path that
// an unprivileged user of this host cannot read can be read inside, whatever
// uid runs there, with whatever capabilities Docker gives a container. It is
// the kernel that holds it, at each access (docs/decisions/0013): what lies
// below the writable overlay is not the host's directory but a second overlay,
// mounted by nobody:
//
//	container ─▶ overlay, writable     mounted by root: checks the task, then
//	             │      │              root against what lies below
//	             upper  overlay         mounted by a uid that owns nothing,
//	             (ours)  │              without capabilities over files: checks
//	                     │              that uid against the host's own inode
//	                     /usr of the host
//
// All mounts are nosuid and nodev: no program and no file capability of the
// host gives anybody more than they have, no device node opens.
//
// What Mount does not do: it isolates files and nothing else. The caller gives
// the namespaces, does with /proc and /sys what [Root] says, and gives neither
// CAP_SYS_ADMIN nor CAP_DAC_READ_SEARCH nor the host's pids to who is to be kept
// in. A change of the host during a run, as an upgrade of
// its packages, is seen inside, and seen mixed with what was copied before it.
// An overlay cannot be put on an overlay on an overlay: where the host's own
// directory lies on one, the closed files are looked for at each start and
// covered, which is slower and does not know what is closed afterwards.
package rootfs

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"berth/internal/crash"

	"golang.org/x/sys/unix"
)

// Options are what a container asks of its root.
type Options struct {
	// Expose are directories of the host that are seen too, copy-on-write. The
	// way to them is opened; what is in them is read as everything else is.
	Expose []string
	// ReadOnly makes what lies below "/" read-only. "/" itself is left to the
	// runtime, which has mount points to make there (root.readonly).
	ReadOnly bool
}

// A Root is what the runtime is to be told. It needs no user namespace. A
// sysfs must not be mounted over its /sys, where the processors and memory nodes
// are and a place for the cgroups: in a whole one uid 0 makes devices by reading
// a file.
type Root struct {
	// Path is the runtime's root.path: a tree of mounts.
	Path string
	// Masked are the paths of /proc that the container's uid 0 could read
	// because it is the host's, and another user could not: for the runtime's
	// linux.maskedPaths, beside the usual ones.
	Masked []string
}

// Mount mounts a root of this host's programs for a container that keeps it in
// dir, and makes what it needs there. What is mounted already is left as it is. The tree is made where
// nobody sees it and comes into the host with one system call, so a process
// that dies leaves all of it or nothing.
//
// A path that cannot be exposed is an error that matches berth.ErrInvalid.
func Mount(dir string, o Options) (Root, error) {
	root := Root{Path: filepath.Join(dir, "root"), Masked: masked()}
	if mounted, err := isMount(root.Path); err != nil || mounted {
		return root, err
	}
	// What the container wrote may be setuid: nobody of the host may get there.
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return Root{}, err
	}
	if err := os.Chmod(dir, 0o700); err != nil {
		return Root{}, err
	}
	for _, d := range []string{root.Path, filepath.Join(dir, layersDir)} {
		if err := os.MkdirAll(d, 0o755); err != nil {
			return Root{}, err
		}
	}
	if err := holdLayers(filepath.Join(dir, layersDir)); err != nil {
		return Root{}, err
	}
	crash.Point("rootfs.layers")
	tree, err := assemble(dir, o)
	if err != nil {
		return Root{}, err
	}
	defer unix.Close(tree)
	crash.Point("rootfs.assembled")
	if err := unix.MoveMount(tree, "", unix.AT_FDCWD, root.Path, unix.MOVE_MOUNT_F_EMPTY_PATH); err != nil {
		return Root{}, fmt.Errorf("mount the root in %s: %w", root.Path, err)
	}
	crash.Point("rootfs.mounted")
	return root, nil
}

// Unmount unmounts the root of a container. What it wrote stays. A process
// that is still inside keeps its files.
func Unmount(dir string) error { return unmount(filepath.Join(dir, "root")) }

// unmount unmounts whatever is mounted at a path.
func unmount(path string) error {
	for {
		switch err := unix.Unmount(path, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW); {
		case err == nil: // once more: there may be another below it
		case errors.Is(err, unix.EINVAL), errors.Is(err, unix.ENOENT):
			return nil // it is no mount point
		default:
			return fmt.Errorf("unmount %s: %w", path, err)
		}
	}
}

// Remove unmounts the root of a container and forgets what it wrote.
func Remove(dir string) error {
	if err := Unmount(dir); err != nil {
		return err
	}
	if err := unmount(filepath.Join(dir, layersDir)); err != nil {
		return err
	}
	return os.RemoveAll(dir)
}

// isMount reports whether something is mounted at a path.
func isMount(path string) (bool, error) {
	var st unix.Statx_t
	err := unix.Statx(unix.AT_FDCWD, path, unix.AT_SYMLINK_NOFOLLOW, 0, &st)
	if errors.Is(err, unix.ENOENT) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("look at %s: %w", path, err)
	}
	return st.Attributes&unix.STATX_ATTR_MOUNT_ROOT != 0, nil
}
