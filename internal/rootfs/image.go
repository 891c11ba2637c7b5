package rootfs

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"berth"
	"berth/internal/crash"

	"golang.org/x/sys/unix"
)

// MountImage mounts the root of a container of an image that keeps it in dir,
// over the directories of the image's layers, the uppermost first, and returns
// its path. What is mounted already is left as it is; with one mount, a process
// that dies leaves all of it or nothing. [Unmount] and [Remove] are its contrary.
//
// An error matches [berth.ErrUnsupported] where no overlay can be mounted: the
// kernel has none, or dir is on a file system that cannot be written to through
// one, as another overlay.
func MountImage(dir string, lower []string) (string, error) {
	root, layers := filepath.Join(dir, "root"), filepath.Join(dir, layersDir)
	if mounted, err := isMount(root); err != nil || mounted {
		return root, err
	}
	// What the container wrote may be setuid: nobody of the host may get there.
	if err := errors.Join(os.MkdirAll(dir, 0o700), os.Chmod(dir, 0o700), os.MkdirAll(root, 0o755), os.MkdirAll(layers, 0o755)); err != nil {
		return "", err
	}
	if on, err := onOverlay(layers); err != nil {
		return "", err
	} else if on {
		return "", fmt.Errorf("mount the image's layers: %s is on an overlay itself: %w", dir, berth.ErrUnsupported)
	}
	if len(lower) == 0 {
		none := filepath.Join(dir, "none") // an image without layers
		if err := os.MkdirAll(none, 0o755); err != nil {
			return "", err
		}
		lower = []string{none}
	}
	var top unix.Stat_t
	if err := unix.Stat(lower[0], &top); err != nil {
		return "", &os.PathError{Op: "stat", Path: lower[0], Err: err}
	}
	if err := makeLayer(layers, "/", &top); err != nil {
		return "", err
	}
	crash.Point("rootfs.image-layer")
	own := filepath.Join(layers, layerName("/"))
	fds, options, err := overlayOf(lower, filepath.Join(own, "upper"), filepath.Join(own, "work"))
	defer closeAll(fds)
	if err != nil {
		return "", err
	}
	err = mountOverlay(root, options)
	if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.EOPNOTSUPP) {
		return "", fmt.Errorf("mount the image's layers: the file system of %s takes no overlay: %w", dir, berth.ErrUnsupported)
	}
	crash.Point("rootfs.image-mounted")
	return root, err
}

// ImageDiff lists what a container of an image that keeps its root in dir has
// changed of its layers, as [Diff].
func ImageDiff(dir string, lower []string) ([]Change, error) {
	upper := filepath.Join(dir, layersDir, layerName("/"), "upper")
	if _, err := os.Lstat(upper); errors.Is(err, os.ErrNotExist) {
		return nil, nil // never mounted
	}
	var d diff
	err := merged(lower, func(path string) error { return d.children(upper, path, "/", false) })
	return withParents(withoutMountPoints(d.changes)), err
}

// mountPoints are made by the runtime for what is mounted there.
var mountPoints = []string{"/dev", "/proc", "/sys", "/etc/hosts", "/etc/hostname", "/etc/resolv.conf"}

// withoutMountPoints leaves out what the container did not do itself. Docker
// does not list them either.
func withoutMountPoints(changes []Change) []Change {
	own := slices.DeleteFunc(changes, func(c Change) bool { return slices.Contains(mountPoints, c.Path) })
	if !slices.ContainsFunc(own, func(c Change) bool { return strings.HasPrefix(c.Path, "/etc/") }) {
		own = slices.DeleteFunc(own, func(c Change) bool { return c.Path == "/etc" })
	}
	return own
}

// merged shows do what layers are together, read-only and to nobody else.
func merged(lower []string, do func(path string) error) (err error) {
	if len(lower) == 0 {
		empty, err := os.MkdirTemp("", "berth-none-")
		if err != nil {
			return err
		}
		defer os.Remove(empty)
		lower = []string{empty}
	}
	if len(lower) == 1 {
		return do(lower[0])
	}
	at, err := os.MkdirTemp("", "berth-layers-")
	if err != nil {
		return err
	}
	defer os.Remove(at)
	onThread(func() { // whose mount namespace ends with it
		if err = unix.Unshare(unix.CLONE_NEWNS); err != nil {
			return
		}
		if err = unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
			return
		}
		// Opened here: the kernel takes no layers of another mount namespace.
		fds, options, failed := overlayOf(lower, "", "")
		defer closeAll(fds)
		if err = failed; err != nil {
			return
		}
		if err = mountOverlay(at, options); err == nil {
			err = do(at)
		}
	})
	return err
}

// overlayOf opens directories and names them by that, so that no name needs
// quoting and hundreds fit into the one page that mount(2) takes.
func overlayOf(lower []string, upper, work string) (fds []int, options string, err error) {
	var b strings.Builder
	add := func(before, path string) {
		if err != nil {
			return
		}
		fd, e := unix.Open(path, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
		if e != nil {
			err = &os.PathError{Op: "open", Path: path, Err: e}
			return
		}
		fds = append(fds, fd)
		b.WriteString(before + "/proc/self/fd/" + strconv.Itoa(fd))
	}
	for i, l := range lower {
		if i == 0 {
			add("index=off,lowerdir=", l)
		} else {
			add(":", l)
		}
	}
	if upper != "" {
		add(",upperdir=", upper)
		add(",workdir=", work)
	}
	return fds, b.String(), err
}

func closeAll(fds []int) {
	for _, fd := range fds {
		unix.Close(fd)
	}
}

// Directory makes a directory in a root, and those on the way to it, and returns
// where on the host it is. Links of the root lead nowhere else.
func Directory(root, path string) (string, error) {
	fd, err := unix.Open(root, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return "", &os.PathError{Op: "open", Path: root, Err: err}
	}
	defer unix.Close(fd)
	path = filepath.Join("/", path)
	if err := mkdirAllIn(fd, path); err != nil {
		return "", err
	}
	at, err := openIn(fd, path)
	if err != nil {
		return "", err
	}
	defer unix.Close(at)
	return os.Readlink("/proc/self/fd/" + strconv.Itoa(at))
}

// OwnDev sees to it that /dev of an image's root is a directory, if there is
// one: a link or a file gives way, as it does in Docker. runc makes and removes
// names in /dev while it is still outside (setupDevSymlinks and setupPtmx,
// 1.1.5), and a link would lead it to a directory of the host.
func OwnDev(root string) error {
	fd, err := unix.Open(root, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return &os.PathError{Op: "open", Path: root, Err: err}
	}
	defer unix.Close(fd)
	var dev unix.Stat_t
	err = unix.Fstatat(fd, "dev", &dev, unix.AT_SYMLINK_NOFOLLOW)
	if errors.Is(err, unix.ENOENT) || err == nil && dev.Mode&unix.S_IFMT == unix.S_IFDIR {
		return nil
	}
	if err == nil {
		err = unix.Unlinkat(fd, "dev", 0)
	}
	if err == nil {
		err = unix.Mkdirat(fd, "dev", 0o755)
	}
	if err != nil {
		return fmt.Errorf("make /dev of the root a directory: %w", err)
	}
	return nil
}
