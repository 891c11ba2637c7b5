package rootfs

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"strconv"

	"berth"
	"berth/internal/crash"

	"golang.org/x/sys/unix"
)

// host is where the host's "/" is. Tests put one of their own there.
var host = "/"

// assemble makes the tree of mounts and returns it open, attached nowhere.
//
// It works on a thread of its own in a mount namespace of its own, which is
// thrown away with all that is left in it.
func assemble(dir string, o Options) (fd int, err error) {
	dir, err = filepath.Abs(dir)
	if err != nil {
		return -1, err
	}
	onThread(func() { fd, err = assembleHere(dir, o) })
	return fd, err
}

// onThread runs f on a thread that ends with it. It is not the first one: that
// does not end, and is the one that /proc/self tells of.
func onThread(f func()) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread()
		if unix.Gettid() == os.Getpid() {
			defer runtime.UnlockOSThread()
			onThread(f)
			return
		}
		f()
	}()
	<-done
}

// A bench is where a tree is put together: a tmpfs that is the working
// directory of the thread. In it are
//
//	src/N   what the host has at the N-th path, without what is mounted below
//	sees/N  the same as an unprivileged user sees it
//	own/N   the container's layer
//	base    "/" of the container
//	etc     what lies over the host's /etc
//	empty   nothing
//	root    the result
type bench struct {
	layers string
	root   int // the directory root, opened
}

func assembleHere(dir string, o Options) (int, error) {
	if err := unix.Unshare(unix.CLONE_NEWNS); err != nil {
		return -1, fmt.Errorf("make a mount namespace: %w", err)
	}
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return -1, fmt.Errorf("make mounts private: %w", err)
	}
	all, links, err := trees(host, o.Expose)
	if err != nil {
		return -1, err
	}
	b := bench{layers: filepath.Join(dir, layersDir), root: -1}
	defer func() { unix.Close(b.root) }()
	if err := b.set(filepath.Join(dir, "root"), all, links); err != nil {
		return -1, err
	}
	if err := b.mount(all); err != nil {
		return -1, err
	}
	return b.detach(o.ReadOnly)
}

// set makes the bench in a directory, with "/" of the container.
func (b *bench) set(at string, all []tree, links []link) error {
	if err := unix.Mount("berth", at, "tmpfs", 0, "mode=755"); err != nil {
		return fmt.Errorf("mount a tmpfs: %w", err)
	}
	if err := unix.Chdir(at); err != nil {
		return err
	}
	for _, d := range []string{"src", "sees", "own", "base", "etc", "empty", "root"} {
		if err := mkdir(d, 0o755); err != nil {
			return err
		}
	}
	if err := makeBase("base", all, links); err != nil {
		return err
	}
	return makeEtc("etc", filepath.Join(host, "etc"))
}

// mount mounts "/" and all trees below it.
func (b *bench) mount(all []tree) error {
	var base unix.Stat_t
	if err := unix.Stat("base", &base); err != nil {
		return err
	}
	if err := b.overlay("/", 0, "base", &base, "root"); err != nil {
		return err
	}
	root, err := unix.Open("root", unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	b.root = root
	for i, t := range all {
		if err := b.tree(i+1, t); err != nil {
			return fmt.Errorf("show %s in the container: %w", t.path, err)
		}
	}
	return b.system()
}

// system shows the processors and the memory as an unprivileged user sees them.
func (b *bench) system() error {
	const path = "/sys/devices/system"
	if _, err := os.Lstat(path); errors.Is(err, fs.ErrNotExist) {
		return nil // no sysfs, no container that has one
	}
	if err := mkdir("src/system", 0o755); err != nil {
		return err
	}
	if err := unix.Mount(path, "src/system", "", unix.MS_BIND, ""); err != nil {
		return fmt.Errorf("show %s in the container: %w", path, err)
	}
	at, err := openIn(b.root, path)
	if err != nil {
		return fmt.Errorf("show %s in the container: %w", path, err)
	}
	defer unix.Close(at)
	return asNobody(func() error { return mountOverlay(fdPath(at), "lowerdir=src/system:empty") })
}

func fdPath(fd int) string { return "/proc/thread-self/fd/" + strconv.Itoa(fd) }

// tree mounts the n-th tree.
func (b *bench) tree(n int, t tree) error {
	// The container wrote there before: nothing there is to be believed.
	at, err := openIn(b.root, t.path)
	if t.mounted && (errors.Is(err, unix.EACCES) || errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENOTDIR)) {
		return nil // no unprivileged user gets there, or the container removed the way
	} else if err != nil {
		return err
	}
	defer unix.Close(at)
	src, sees := "src/"+strconv.Itoa(n), "sees/"+strconv.Itoa(n)
	for _, d := range []string{src, sees} {
		if err := mkdir(d, 0o755); err != nil {
			return err
		}
	}
	if err := unix.Mount(t.source, src, "", unix.MS_BIND, ""); err != nil {
		return err
	}
	lower, err := filtered(src, sees)
	if err != nil {
		return err
	}
	crash.Point("rootfs.tree")
	if t.path == "/etc" {
		lower = "etc:" + lower
	}
	return b.overlay(t.path, n, lower, &t.stat, fdPath(at))
}

// filtered returns what shows of the directory src what an unprivileged user
// sees of it, as a value of lowerdir.
func filtered(src, sees string) (string, error) {
	on, err := onOverlay(src)
	if err != nil {
		return "", err
	}
	if on {
		return sees + ":" + src, cover(src, sees)
	}
	return sees, asNobody(func() error { return mountOverlay(sees, "lowerdir="+src+":empty") })
}

// overlay mounts the writable overlay of a path of the container.
func (b *bench) overlay(path string, n int, lower string, like *unix.Stat_t, at string) error {
	if err := makeLayer(b.layers, path, like); err != nil {
		return err
	}
	own := "own/" + strconv.Itoa(n)
	if err := mkdir(own, 0o755); err != nil {
		return err
	}
	if err := unix.Mount(filepath.Join(b.layers, layerName(path)), own, "", unix.MS_BIND, ""); err != nil {
		return err
	}
	return mountOverlay(at, "index=off,lowerdir="+lower+",upperdir="+own+"/upper,workdir="+own+"/work")
}

// mountOverlay mounts an overlay. All names are those of the bench, so that
// none needs quoting. A copy is always a whole copy and stays where it is: what
// lies in an upper directory is what the container sees there, and no attribute
// of a file leads to another.
func mountOverlay(at, options string) error {
	err := unix.Mount("overlay", at, "overlay", 0, options+",metacopy=off,redirect_dir=nofollow")
	if errors.Is(err, unix.ENODEV) {
		return fmt.Errorf("mount an overlay: the kernel has no module overlay: %w", berth.ErrUnsupported)
	} else if err != nil {
		return fmt.Errorf("mount an overlay: %w", err)
	}
	return nil
}

// detach takes the result off the bench.
func (b *bench) detach(readOnly bool) (int, error) {
	fd, err := unix.OpenTree(unix.AT_FDCWD, "root", unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC|unix.AT_RECURSIVE)
	if err != nil {
		return -1, fmt.Errorf("take the tree of mounts: %w", err)
	}
	attr := unix.MountAttr{Attr_set: unix.MOUNT_ATTR_NOSUID | unix.MOUNT_ATTR_NODEV}
	if readOnly {
		attr.Attr_set |= unix.MOUNT_ATTR_RDONLY
	}
	err = unix.MountSetattr(fd, "", unix.AT_EMPTY_PATH|unix.AT_RECURSIVE, &attr)
	if err == nil && readOnly {
		err = unix.MountSetattr(fd, "", unix.AT_EMPTY_PATH, &unix.MountAttr{Attr_clr: unix.MOUNT_ATTR_RDONLY})
	}
	if err != nil {
		unix.Close(fd)
		return -1, fmt.Errorf("set the tree of mounts nosuid and nodev: %w", err)
	}
	return fd, nil
}

// mkdir makes a directory with just this mode, whatever the umask.
func mkdir(path string, mode uint32) error {
	if err := unix.Mkdir(path, 0o700); err != nil {
		return &os.PathError{Op: "mkdir", Path: path, Err: err}
	}
	return unix.Chmod(path, mode)
}
