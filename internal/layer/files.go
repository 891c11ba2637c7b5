package layer

import (
	"archive/tar"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
	"unsafe"

	"golang.org/x/sys/unix"
)

// openInRoot opens a directory as in a chroot: no name and no symbolic link
// leads out of the root (openat2, Linux 5.6), nor to another file system.
func openInRoot(root int, name string) (int, error) {
	if name == "" {
		name = "."
	}
	how := unix.OpenHow{
		Flags:   unix.O_RDONLY | unix.O_DIRECTORY | unix.O_CLOEXEC,
		Resolve: unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_MAGICLINKS | unix.RESOLVE_NO_XDEV,
	}
	// The kernel cannot vouch for ".." while anything on the machine is renamed
	// or mounted, and asks to try again.
	for try := 0; ; try++ {
		fd, err := unix.Openat2(root, name, &how)
		if err == unix.EINTR || err == unix.EAGAIN && try < 1000 {
			continue
		}
		return fd, err
	}
}

// openDir opens a directory in another. What is no directory is not opened.
func openDir(parent int, name string) (int, error) {
	return unix.Openat(parent, name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
}

// notDir reports whether openDir found something else.
func notDir(err error) bool { return errors.Is(err, unix.ENOTDIR) || errors.Is(err, unix.ELOOP) }

// realPath is the path of an open directory, without symbolic links.
func realPath(fd int) (string, error) {
	return readlink(unix.AT_FDCWD, "/proc/self/fd/"+strconv.Itoa(fd))
}

func readlink(dir int, name string) (string, error) {
	var buf [unix.PathMax]byte
	n, err := unix.Readlinkat(dir, name, buf[:])
	return string(buf[:max(n, 0)]), err
}

// setOwner sets owner and mode where they differ: a look costs less than a
// change, which goes through the journal, and mostly they are right.
func setOwner(fd int, o owner) error {
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return err
	}
	if int(st.Uid) != o.uid || int(st.Gid) != o.gid {
		if err := unix.Fchown(fd, o.uid, o.gid); err != nil {
			return err
		}
		if o.mode&0o7000 != 0 {
			return unix.Fchmod(fd, o.mode) // chown may have taken these away
		}
	}
	if st.Mode&0o7777 != o.mode {
		return unix.Fchmod(fd, o.mode)
	}
	return nil
}

func setTimes(fd int, t [2]unix.Timespec) error {
	_, _, errno := unix.Syscall6(unix.SYS_UTIMENSAT, uintptr(fd), 0, uintptr(unsafe.Pointer(&t)), 0, 0, 0)
	if errno != 0 {
		return errno
	}
	return nil
}

func setTimesAt(parent int, name string, t [2]unix.Timespec) error {
	return unix.UtimesNanoAt(parent, name, t[:], unix.AT_SYMLINK_NOFOLLOW)
}

const (
	xattrRecord     = "SCHILY.xattr."
	xattrCapability = "security.capability"
)

// allowed reports whether a layer may bring an extended attribute. Those of
// overlays could lead a lookup elsewhere, labels and signatures are the host's.
func allowed(name string) bool {
	return name == xattrCapability || name == "system.posix_acl_access" || name == "system.posix_acl_default" ||
		strings.HasPrefix(name, "user.") && !strings.HasPrefix(name, "user.overlay.")
}

// setXattrs sets the extended attributes of an entry.
func setXattrs(fd int, h *tar.Header) error {
	for key, value := range h.PAXRecords {
		name, ok := strings.CutPrefix(key, xattrRecord)
		if !ok || !allowed(name) {
			continue
		}
		if err := setXattr(fd, name, []byte(value)); err != nil {
			return err
		}
	}
	return nil
}

// setXattr sets one. A file system without them is no reason to do without the
// image, unless a program would lack what it may do.
func setXattr(fd int, name string, value []byte) error {
	err := unix.Fsetxattr(fd, name, value, 0)
	switch {
	case err == nil, errors.Is(err, unix.ENOTSUP) && name != xattrCapability:
		return nil
	case errors.Is(err, unix.EINVAL), errors.Is(err, unix.ERANGE), errors.Is(err, unix.E2BIG):
		return invalid("set attribute %s: %w", quote(name), err)
	}
	return fmt.Errorf("set attribute %s: %w", quote(name), err)
}

// removeAll removes what is there under a name, with what is below it.
func removeAll(parent int, name string) error {
	err := unix.Unlinkat(parent, name, 0)
	if !errors.Is(err, unix.EISDIR) {
		return err
	}
	fd, err := openDir(parent, name)
	if err != nil {
		return err
	}
	err = each(fd, func(child string) error { return removeAll(fd, child) })
	unix.Close(fd)
	if err != nil {
		return err
	}
	return unix.Unlinkat(parent, name, unix.AT_REMOVEDIR)
}

// each calls a function for every name in a directory, which may take it away.
func each(dir int, do func(name string) error) error {
	// Opened anew, because the position in a directory belongs to the open file.
	fd, err := openDir(dir, ".")
	if err != nil {
		return err
	}
	f := os.NewFile(uintptr(fd), "")
	defer f.Close()
	for {
		names, err := f.Readdirnames(1000)
		for _, name := range names {
			if err := do(name); err != nil {
				return err
			}
		}
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
	}
}
