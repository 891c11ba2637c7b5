package rootfs

import (
	"fmt"
	"net/url"
	"os"
	"path/filepath"

	"berth/internal/crash"

	"golang.org/x/sys/unix"
)

// layersDir holds a directory for each overlay of a root, named for its path:
// %2F, %2Fusr, %2Fusr%2Flocal. In it are upper, what the container wrote, and
// work, which is the kernel's.
const layersDir = "layers"

func layerName(path string) string { return url.PathEscape(path) }

// makeLayer makes the layer of a path, unless it is there. The upper directory
// is what the overlay's own root looks like, so it is as the host's directory.
func makeLayer(layers, path string, like *unix.Stat_t) error {
	dir := filepath.Join(layers, layerName(path))
	upper := filepath.Join(dir, "upper")
	if _, err := os.Lstat(upper); err == nil {
		return nil
	}
	if err := os.MkdirAll(filepath.Join(dir, "work"), 0o700); err != nil {
		return err
	}
	// Renamed when it is right: a process may die between two of these lines.
	fresh := filepath.Join(dir, "new")
	if err := os.MkdirAll(fresh, 0o700); err != nil {
		return err
	}
	if err := os.Chown(fresh, int(like.Uid), int(like.Gid)); err != nil {
		return err
	}
	if err := unix.Chmod(fresh, like.Mode&0o7777); err != nil {
		return err
	}
	crash.Point("rootfs.layer")
	times := []unix.Timespec{like.Atim, like.Mtim}
	if err := unix.UtimesNanoAt(unix.AT_FDCWD, fresh, times, 0); err != nil {
		return err
	}
	return os.Rename(fresh, upper)
}

// holdLayers makes layers a file system that can be the upper part of an
// overlay. An overlay cannot: where the store is on one, the layers are in
// memory, and are forgotten at a reboot.
func holdLayers(layers string) error {
	on, err := onOverlay(layers)
	if err != nil || !on {
		return err
	}
	if err := unix.Mount("berth", layers, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, "mode=755"); err != nil {
		return fmt.Errorf("mount a tmpfs for what the container writes: %w", err)
	}
	return nil
}

// onOverlay reports whether a path is on a file system that is itself stacked
// on another. Linux stacks two at most (FILESYSTEM_MAX_STACK_DEPTH).
func onOverlay(path string) (bool, error) {
	var st unix.Statfs_t
	if err := unix.Statfs(path, &st); err != nil {
		return false, fmt.Errorf("look at the file system of %s: %w", path, err)
	}
	return st.Type == unix.OVERLAYFS_SUPER_MAGIC || st.Type == unix.ECRYPTFS_SUPER_MAGIC, nil
}
