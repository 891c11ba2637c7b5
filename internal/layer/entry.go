package layer

import (
	"archive/tar"
	"bytes"
	"errors"
	"io"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// make makes what an entry is. What is there under its name gives way, but for
// a directory that is listed twice.
func (u *unpacking) make(p *dir, base, name string, h *tar.Header) error {
	switch h.Typeflag {
	case tar.TypeReg, tar.TypeCont, tar.TypeGNUSparse:
		return u.file(p, base, h)
	case tar.TypeDir:
		return u.dir(p, base, name, h)
	case tar.TypeSymlink:
		return u.symlink(p, base, h)
	case tar.TypeLink:
		return u.hardlink(p, base, h)
	case tar.TypeChar, tar.TypeBlock, tar.TypeFifo:
		return u.node(p, base, h)
	default:
		return invalid("kind %q is in no layer", h.Typeflag)
	}
}

// replace does what makes a name, and again without what was there.
func (u *unpacking) replace(p *dir, base string, do func() error) error {
	err := do()
	if !errors.Is(err, unix.EEXIST) {
		return err
	}
	if err := u.dirs.remove(p, base); err != nil {
		return err
	}
	return do()
}

func (u *unpacking) dir(p *dir, base, name string, h *tar.Header) error {
	d, err := u.dirs.mkdir(p, base, name, mode(h))
	if errors.Is(err, unix.EEXIST) {
		if d, err = u.listedTwice(p, base, name, h); err != nil {
			return err
		}
	}
	if err != nil {
		return err
	}
	return u.attributes(d, h)
}

// listedTwice opens a directory whose name is taken. Where it is taken by
// something else, that hid what layers below have there, and so does the
// directory.
func (u *unpacking) listedTwice(p *dir, base, name string, h *tar.Header) (*dir, error) {
	fd, err := openDir(p.fd, base)
	if err == nil {
		return u.dirs.keep(name, fd, p.length+1+len(base))
	}
	if !notDir(err) {
		return nil, err
	}
	if err := u.dirs.remove(p, base); err != nil {
		return nil, err
	}
	d, err := u.dirs.mkdir(p, base, name, mode(h))
	if err != nil {
		return nil, err
	}
	return d, u.marks.opaque(d.fd)
}

// attributes sets those of a directory. Its times wait until it is closed.
func (u *unpacking) attributes(d *dir, h *tar.Header) error {
	o, err := ownerOf(h)
	if err != nil {
		return err
	}
	if err := setOwner(d.fd, o); err != nil {
		return err
	}
	d.times = times(h)
	return setXattrs(d.fd, h)
}

func (u *unpacking) file(p *dir, base string, h *tar.Header) error {
	o, err := ownerOf(h)
	if err != nil {
		return err
	}
	if h.Size > u.options.MaxBytes-u.stats.Bytes {
		return invalid("the files of the layer have more than %d bytes", u.options.MaxBytes)
	}
	u.stats.Bytes += h.Size
	fd := -1
	err = u.replace(p, base, func() (err error) {
		fd, err = unix.Openat(p.fd, base, unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL|unix.O_NOFOLLOW|unix.O_CLOEXEC, o.mode)
		return err
	})
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	if err := u.content(fd, h); err != nil {
		return err
	}
	// A write or a new owner takes file capabilities and set-user-ID bits away.
	if err := setOwner(fd, o); err != nil {
		return err
	}
	if err := setXattrs(fd, h); err != nil {
		return err
	}
	return setTimes(fd, times(h))
}

// content writes what is in a file.
func (u *unpacking) content(fd int, h *tar.Header) error {
	sparse := isSparse(h)
	for at := int64(0); at < h.Size; {
		n, err := u.tar.Read(u.buf)
		if werr := write(fd, u.buf[:n], at, sparse); werr != nil {
			return werr
		}
		at += int64(n)
		if err == io.EOF && at < h.Size {
			return io.ErrUnexpectedEOF
		}
		if err != nil && err != io.EOF {
			return err
		}
		if err := u.ctx.Err(); err != nil { // a hole is not read from the source
			return err
		}
	}
	if sparse {
		return unix.Ftruncate(fd, h.Size)
	}
	return nil
}

// isSparse reports whether a file has holes, in any of tar's four ways to say so.
func isSparse(h *tar.Header) bool {
	if h.Typeflag == tar.TypeGNUSparse {
		return true
	}
	for key := range h.PAXRecords {
		if strings.HasPrefix(key, "GNU.sparse.") {
			return true
		}
	}
	return false
}

var zeros [4096]byte

// write writes at a place of a file, but leaves its holes out.
func write(fd int, p []byte, at int64, sparse bool) error {
	for len(p) > 0 {
		part := p
		if sparse {
			part = p[:min(len(p), len(zeros))]
			if bytes.Equal(part, zeros[:len(part)]) {
				at += int64(len(part))
				p = p[len(part):]
				continue
			}
		}
		n, err := unix.Pwrite(fd, part, at)
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return err
		}
		at += int64(n)
		p = p[n:]
	}
	return nil
}

func (u *unpacking) symlink(p *dir, base string, h *tar.Header) error {
	o, err := ownerOf(h)
	if err != nil {
		return err
	}
	if h.Linkname == "" || len(h.Linkname) >= unix.PathMax {
		return invalid("a symbolic link has a target of 1 to %d bytes, not %d", unix.PathMax-1, len(h.Linkname))
	}
	if err := u.replace(p, base, func() error { return unix.Symlinkat(h.Linkname, p.fd, base) }); err != nil {
		return err
	}
	if err := unix.Fchownat(p.fd, base, o.uid, o.gid, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return err
	}
	return setTimesAt(p.fd, base, times(h))
}

// hardlink gives a file of the layer another name. It brings no attributes: the
// file has those of its own entry.
func (u *unpacking) hardlink(p *dir, base string, h *tar.Header) error {
	parent, target := split(inRoot(h.Linkname))
	if target == "" {
		return invalid("a hard link to the root")
	}
	to, err := u.dirs.open(parent, find)
	if err == nil {
		err = u.link(to, target, p, base)
	}
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENOTDIR) {
		return invalid("it is a hard link to %s, which is not in the layer", quote(h.Linkname))
	}
	if errors.Is(err, unix.EPERM) {
		return invalid("it is a hard link to %s, which is a directory", quote(h.Linkname))
	}
	return err
}

func (u *unpacking) link(to *dir, target string, p *dir, base string) error {
	var old, file unix.Stat_t
	if err := unix.Fstatat(to.fd, target, &file, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return err
	}
	if u.marks.hidden(&file) || strings.HasPrefix(target, markPrefix) {
		return unix.ENOENT
	}
	err := unix.Linkat(to.fd, target, p.fd, base, 0)
	if !errors.Is(err, unix.EEXIST) {
		return err
	}
	if err := unix.Fstatat(p.fd, base, &old, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return err
	}
	if file.Ino == old.Ino {
		return nil // removing it might remove the file itself
	}
	if file.Mode&unix.S_IFMT == unix.S_IFDIR {
		return unix.EPERM
	}
	// The target may be in what gives way: it gets a name beside it first.
	const aside = markPrefix + markPrefix + "link"
	if err := unix.Linkat(to.fd, target, p.fd, aside, 0); err != nil {
		return err
	}
	if err := u.dirs.remove(p, base); err != nil {
		return err
	}
	return unix.Renameat(p.fd, aside, p.fd, base)
}

// node makes a device or a named pipe.
func (u *unpacking) node(p *dir, base string, h *tar.Header) error {
	o, err := ownerOf(h)
	if err != nil {
		return err
	}
	kind, device := uint32(unix.S_IFIFO), uint64(0)
	if h.Typeflag != tar.TypeFifo {
		kind = unix.S_IFBLK
		if h.Typeflag == tar.TypeChar {
			kind = unix.S_IFCHR
		}
		// What a device number has room for (linux/kdev_t.h).
		if h.Devmajor < 0 || h.Devmajor >= 1<<12 || h.Devminor < 0 || h.Devminor >= 1<<20 {
			return invalid("there is no device %d:%d", h.Devmajor, h.Devminor)
		}
		device = unix.Mkdev(uint32(h.Devmajor), uint32(h.Devminor))
	}
	if kind == unix.S_IFCHR && device == 0 {
		return u.whiteout(p, base) // that is what an overlay takes it for
	}
	if err := u.replace(p, base, func() error { return unix.Mknodat(p.fd, base, kind|o.mode, int(device)) }); err != nil {
		return err
	}
	if err := unix.Fchownat(p.fd, base, o.uid, o.gid, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return err
	}
	// It is ours, and no symbolic link: the umask had its way with the mode.
	if err := unix.Fchmodat(p.fd, base, o.mode, 0); err != nil {
		return err
	}
	return setTimesAt(p.fd, base, times(h))
}

// whiteout hides a name, and what the layer itself has there gives way: unlike
// a mark it has the name.
func (u *unpacking) whiteout(p *dir, base string) error {
	err := u.dirs.remove(p, base)
	if err != nil && !errors.Is(err, unix.ENOENT) {
		return err
	}
	return u.marks.hide(p.fd, base)
}

// An owner is who has a file and who may do what with it.
type owner struct {
	uid, gid int
	mode     uint32
}

func mode(h *tar.Header) uint32 { return uint32(h.Mode & 0o7777) }

func ownerOf(h *tar.Header) (owner, error) {
	const most = 1<<32 - 2 // the one above means "as it was"
	if h.Uid < 0 || int64(h.Uid) > most || h.Gid < 0 || int64(h.Gid) > most {
		return owner{}, invalid("there is no owner %d:%d", h.Uid, h.Gid)
	}
	return owner{h.Uid, h.Gid, mode(h)}, nil
}

func times(h *tar.Header) [2]unix.Timespec {
	t := unix.NsecToTimespec(0)
	if h.ModTime != (time.Time{}) {
		t.Sec, t.Nsec = h.ModTime.Unix(), int64(h.ModTime.Nanosecond())
	}
	return [2]unix.Timespec{t, t}
}
