package layer

import (
	"errors"
	"fmt"

	"berth"

	"golang.org/x/sys/unix"
)

// In an archive, what is hidden is said by names.
const (
	markPrefix = ".wh."
	markOpaque = ".wh..wh..opq"
)

// In an overlay, by these.
const (
	xattrOpaque = "trusted.overlay.opaque"
	// A directory that is in one layer only is listed by the kernel as it is,
	// with the devices that hide names, which then cannot be found: rm -r
	// stumbles over them. It filters one that may have been copied up, of which
	// this attribute tells, empty where the origin is not known (ovl_get_inode:
	// "non-merge dir that may have whiteouts"; measured on 6.18).
	xattrOrigin = "trusted.overlay.origin"
)

// marks is how an unpacked layer says what it hides of the layers below. What
// the layer itself holds is never hidden, whatever the order of its entries.
type marks interface {
	// hide hides what layers below have under a name.
	hide(dir int, name string) error
	// opaque hides what layers below have in a directory.
	opaque(dir int) error
	// hidden reports whether what is there under a name says that it is hidden.
	hidden(st *unix.Stat_t) bool
}

// overlayMarks are those of an overlay.
type overlayMarks struct{}

func (overlayMarks) hide(dir int, name string) error {
	err := unix.Mknodat(dir, name, unix.S_IFCHR, 0)
	if err == nil {
		return unix.Fsetxattr(dir, xattrOrigin, nil, 0)
	}
	if !errors.Is(err, unix.EEXIST) {
		return err
	}
	fd, err := openDir(dir, name)
	if notDir(err) {
		return nil // a file hides by being there
	}
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	return overlayMarks{}.opaque(fd)
}

// tryMarks makes both marks and takes them away. An overlay refuses them, as do
// file systems without devices or without attributes of this kind.
func tryMarks(dir int) error {
	const name = markPrefix + markPrefix + "try"
	err := unix.Mknodat(dir, name, unix.S_IFCHR, 0)
	if err == nil {
		err = unix.Fsetxattr(dir, xattrOrigin, nil, 0)
	}
	if err == nil {
		err = unix.Fremovexattr(dir, xattrOrigin)
	}
	if errors.Is(err, unix.EPERM) || errors.Is(err, unix.ENOTSUP) {
		err = fmt.Errorf("the file system takes no marks of overlays: %w: %w", err, berth.ErrUnsupported)
	}
	return errors.Join(err, gone(unix.Unlinkat(dir, name, 0)))
}

func (overlayMarks) opaque(dir int) error {
	return unix.Fsetxattr(dir, xattrOpaque, []byte{'y'}, 0)
}

func (overlayMarks) hidden(st *unix.Stat_t) bool {
	return st.Mode&unix.S_IFMT == unix.S_IFCHR && st.Rdev == 0
}

// nameMarks are those of the archive, beside what they hide: an overlay, for
// one, refuses the others. No layer has names like these but for marks.
type nameMarks struct{}

func (nameMarks) hide(dir int, name string) error { return putMark(dir, markPrefix+name) }
func (nameMarks) opaque(dir int) error            { return putMark(dir, markOpaque) }
func (nameMarks) hidden(*unix.Stat_t) bool        { return false }

func putMark(dir int, name string) error {
	err := unix.Mknodat(dir, name, unix.S_IFREG, 0)
	if errors.Is(err, unix.EEXIST) {
		return nil
	}
	return err
}
