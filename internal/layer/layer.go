// Package layer unpacks one layer of an image, a tar archive that may have been
// made to do harm.
//
// Names are as in a chroot: absolute ones and ".." stay below the directory,
// and so does whatever a symbolic link of the layer leads through. Nothing
// outside the directory is written, read or changed, and what can be made to
// grow is bounded: bytes, entries, the depth of the tree.
//
// What a layer may hold, it holds as packed: owners, set-user-ID bits, device
// nodes, file capabilities. So the directory belongs where only root can look.
// A failed unpack leaves what it had made; whoever called removes it.
package layer

import (
	"archive/tar"
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"strings"
	"syscall"

	"berth"

	"golang.org/x/sys/unix"
)

// Form is how what a layer hides of the layers below is kept.
type Form int

const (
	// Overlay fills an empty directory that will be a lower directory of an
	// overlay. A hidden name becomes a character device 0:0 and a directory
	// that hides what was in it is marked by an extended attribute, as the
	// kernel wants them.
	Overlay Form = iota
	// Onto changes a directory that holds the layers below to what an overlay
	// would show. It is for where overlays cannot be used.
	Onto
)

// The limits of a layer, where Options has none.
const (
	DefaultMaxBytes   = 64 << 30
	DefaultMaxEntries = 10_000_000
)

// Options of Unpack. The zero value is the form of an overlay and the default
// limits.
type Options struct {
	Form       Form
	MaxBytes   int64 // of all files together; holes count
	MaxEntries int64 // with the directories that entries imply
}

// Stats is what a layer held.
type Stats struct {
	Bytes   int64 // of all files together
	Entries int64
}

const (
	blockSize  = 512
	bufferSize = 256 << 10
)

// Unpack unpacks a layer, not compressed, into a directory that is there, and
// reads archive up to its end. A layer that is bad matches berth.ErrInvalid; an
// error of archive or of the disk comes as it is.
//
// A layer knows nothing of those below it, so that it can be shared: a
// directory that it implies and does not list is root's, with mode 0755, and a
// hard link to a file that it does not hold is an error.
//
// Where the file system takes no marks of overlays, the form Overlay is an error
// that matches berth.ErrUnsupported, and nothing was read.
func Unpack(ctx context.Context, dir string, archive io.Reader, o Options) (Stats, error) {
	if o.MaxBytes == 0 {
		o.MaxBytes = DefaultMaxBytes
	}
	if o.MaxEntries == 0 {
		o.MaxEntries = DefaultMaxEntries
	}
	root, err := unix.Open(dir, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return Stats{}, fmt.Errorf("unpack a layer into %s: %w", dir, err)
	}
	defer unix.Close(root)
	if o.Form == Onto {
		return unpackOnto(ctx, root, archive, o)
	}
	if err := tryMarks(root); err != nil {
		return Stats{}, fmt.Errorf("unpack a layer into %s: %w", dir, err)
	}
	return unpackMarked(ctx, root, overlayMarks{}, archive, o)
}

// Opaque reports whether the layer in a directory, in the form Overlay, hides
// everything in the layers below it. The kernel does not look for the mark at
// the root of a layer (measured on 6.18), so that the overlay has to be mounted
// without those layers.
func Opaque(dir string) (bool, error) {
	value := make([]byte, 1)
	n, err := unix.Getxattr(dir, xattrOpaque, value)
	if errors.Is(err, unix.ENODATA) || errors.Is(err, unix.ERANGE) || errors.Is(err, unix.ENOTSUP) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("look at layer %s: %w", dir, err)
	}
	return n == 1 && value[0] == 'y', nil
}

// An unpacking is one archive on its way into one directory.
type unpacking struct {
	ctx     context.Context
	options Options
	marks   marks
	dirs    *dirs
	tar     *tar.Reader
	buf     []byte
	stats   Stats
	made    int64 // entries and directories that they implied
}

// unpackMarked fills a directory; what it hides of layers below is left as marks.
func unpackMarked(ctx context.Context, root int, m marks, archive io.Reader, o Options) (_ Stats, err error) {
	src := &source{ctx: ctx, r: archive, left: rawLimit(o)}
	in := bufio.NewReaderSize(src, bufferSize)
	u := &unpacking{ctx: ctx, options: o, marks: m, tar: tar.NewReader(in), buf: make([]byte, bufferSize)}
	u.dirs, err = newDirs(root, u)
	if err != nil {
		return Stats{}, err
	}
	defer u.dirs.close()
	for {
		h, err := u.tar.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil && !errors.Is(err, tar.ErrInsecurePath) {
			return u.stats, src.explain("read the layer", err)
		}
		if err := u.entry(h); err != nil {
			return u.stats, src.explain("unpack "+quote(h.Name), err)
		}
	}
	if err := u.dirs.settle(); err != nil {
		return u.stats, err
	}
	if _, err := in.WriteTo(io.Discard); err != nil {
		return u.stats, src.explain("read the layer", err)
	}
	return u.stats, nil
}

// entry unpacks one entry.
func (u *unpacking) entry(h *tar.Header) error {
	u.stats.Entries++
	if err := u.count(); err != nil {
		return err
	}
	if h.Typeflag == tar.TypeXGlobalHeader {
		return nil
	}
	name := inRoot(h.Name)
	parent, base := split(name)
	if len(name) >= unix.PathMax {
		return invalid("the name has %d bytes; %d is the most", len(name), unix.PathMax-1)
	}
	if name == "" {
		return u.root(h)
	}
	if strings.HasPrefix(parent, markPrefix) || strings.Contains(parent, "/"+markPrefix) {
		return u.belowMark(parent)
	}
	p, err := u.dirs.open(parent, create)
	if err != nil {
		return err
	}
	if strings.HasPrefix(base, markPrefix) {
		return u.mark(p, base)
	}
	return u.make(p, base, name, h)
}

// count counts what is about to be made.
func (u *unpacking) count() error {
	u.made++
	if u.made > u.options.MaxEntries {
		return invalid("the layer has more than %d entries", u.options.MaxEntries)
	}
	return nil
}

// root takes the directory's own attributes from the entry "/" or "./".
func (u *unpacking) root(h *tar.Header) error {
	if h.Typeflag != tar.TypeDir {
		return invalid("the root is a directory")
	}
	d, err := u.dirs.open("", create)
	if err != nil {
		return err
	}
	return u.attributes(d, h)
}

// mark hides what layers below have under a name, or in the directory.
func (u *unpacking) mark(p *dir, base string) error {
	switch hidden := base[len(markPrefix):]; {
	case base == markOpaque:
		return u.marks.opaque(p.fd)
	case strings.HasPrefix(hidden, markPrefix):
		return nil // bookkeeping of aufs, as .wh..wh.plnk
	case hidden == "" || hidden == "." || hidden == "..":
		return invalid("it hides no name")
	default:
		return u.marks.hide(p.fd, hidden)
	}
}

// belowMark judges an entry that has a mark among its directories.
func (u *unpacking) belowMark(parent string) error {
	for part := range strings.SplitSeq(parent, "/") {
		if strings.HasPrefix(part, markPrefix+markPrefix) {
			return nil // bookkeeping of aufs
		}
	}
	return invalid("a name that starts with %s is no directory", markPrefix)
}

// A source is the archive as it is read. It keeps apart what the reader said
// and what is wrong with the archive, and ends one that does not end.
type source struct {
	ctx  context.Context
	r    io.Reader
	left int64
	err  error // of the reader
}

// rawLimit is how long an archive within the limits may be: entries have
// headers and padding, and a few have long names.
func rawLimit(o Options) int64 {
	const perEntry = 8 * blockSize
	const most = 1<<63 - 1 - 1<<20
	if o.MaxEntries > most/perEntry/2 || o.MaxBytes > most/2 {
		return most
	}
	return o.MaxBytes + o.MaxEntries*perEntry + 1<<20
}

var errTooLong = fmt.Errorf("the archive is longer than its limits allow: %w", berth.ErrInvalid)

func (s *source) Read(p []byte) (int, error) {
	if s.err != nil {
		return 0, s.err
	}
	if s.err = s.ctx.Err(); s.err != nil {
		return 0, s.err
	}
	n, err := s.r.Read(p)
	s.left -= int64(n)
	if err == nil && s.left < 0 {
		err = errTooLong
	}
	s.err = err
	return n, err
}

// explain tells what an error is about, and that the layer is bad unless the
// disk or the reader is.
func (s *source) explain(what string, err error) error {
	switch {
	case s.err != nil && !errors.Is(s.err, io.EOF):
		return fmt.Errorf("%s: %w", what, s.err)
	case errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, io.EOF):
		return fmt.Errorf("%s: the archive ends in the middle: %w", what, berth.ErrInvalid)
	case errors.Is(err, tar.ErrHeader) || errors.Is(err, tar.ErrFieldTooLong):
		return fmt.Errorf("%s: no tar archive, or a damaged one: %w", what, berth.ErrInvalid)
	case errors.Is(err, unix.ENAMETOOLONG) || errors.Is(err, unix.ELOOP) || errors.Is(err, unix.ENOTDIR):
		return fmt.Errorf("%s: %w: %w", what, err, berth.ErrInvalid)
	case errors.Is(err, berth.ErrInvalid) || isKernel(err):
		return fmt.Errorf("%s: %w", what, err)
	case errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded):
		return fmt.Errorf("%s: %w", what, err)
	default: // what archive/tar has no name for
		return fmt.Errorf("%s: %w: %w", what, err, berth.ErrInvalid)
	}
}

func isKernel(err error) bool {
	var e syscall.Errno
	return errors.As(err, &e) || errors.Is(err, os.ErrClosed)
}

func invalid(format string, args ...any) error {
	return fmt.Errorf(format+": %w", append(args, berth.ErrInvalid)...)
}

// quote makes a name of an archive printable.
func quote(name string) string {
	const most = 100
	if len(name) > most {
		return fmt.Sprintf("%q…", name[:most])
	}
	return fmt.Sprintf("%q", name)
}

// inRoot is a name as seen in a chroot, without the slash before it.
func inRoot(name string) string { return path.Clean("/" + name)[1:] }

func split(name string) (parent, base string) {
	i := strings.LastIndexByte(name, '/')
	if i < 0 {
		return "", name
	}
	return name[:i], name[i+1:]
}
