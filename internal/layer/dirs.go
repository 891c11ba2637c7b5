package layer

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// openDirs is how many directories are kept open. An archive mostly goes
// through a tree depth first, and comes back to the parents.
const openDirs = 8

// A dir is an open directory of the layer.
type dir struct {
	name   string // the one that it was opened by
	fd     int
	ino    uint64
	length int // of its path without links, from the root
	// What its times have to be in the end. Whatever is made in it moves them,
	// so they are set when it is closed: a directory that is not open has the
	// right ones, and no list of directories is kept.
	times [2]unix.Timespec
}

// dirs opens the directories of a layer, and makes those that are missing.
// Those used last are kept open.
type dirs struct {
	u       *unpacking
	root    int
	rootLen int
	kept    []*dir // the one used last is the first
}

// A making says whether directories that are missing are made.
type making bool

const (
	create making = true
	find   making = false
)

func newDirs(root int, u *unpacking) (*dirs, error) {
	path, err := realPath(root)
	if err != nil {
		return nil, err
	}
	return &dirs{u: u, root: root, rootLen: len(path)}, nil
}

// open opens a directory by its name. It stays open until others have taken its
// place, the one used longest ago first.
func (ds *dirs) open(name string, m making) (*dir, error) {
	return ds.follow(name, m, 0)
}

// follow is open after so many symbolic links that lead to nothing.
func (ds *dirs) follow(name string, m making, links int) (*dir, error) {
	for i, d := range ds.kept {
		if d.name == name {
			if i > 0 {
				copy(ds.kept[1:], ds.kept[:i])
				ds.kept[0] = d
			}
			return d, nil
		}
	}
	fd, err := openInRoot(ds.root, name)
	if m == create && (errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENOTDIR)) && name != "" {
		return ds.make(name, links)
	}
	if err != nil {
		return nil, err
	}
	path, err := realPath(fd)
	if err != nil {
		unix.Close(fd)
		return nil, err
	}
	return ds.keep(name, fd, max(0, len(path)-ds.rootLen))
}

// make makes a directory that is implied by the name of an entry.
func (ds *dirs) make(name string, links int) (*dir, error) {
	parent, base := split(name)
	p, err := ds.follow(parent, create, links)
	if err != nil {
		return nil, err
	}
	if err := ds.u.count(); err != nil {
		return nil, err
	}
	d, err := ds.mkdir(p, base, name, 0o755)
	if !errors.Is(err, unix.EEXIST) {
		return d, err
	}
	var st unix.Stat_t
	if err := unix.Fstatat(p.fd, base, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return nil, err
	}
	if ds.u.marks.hidden(&st) {
		if err := ds.remove(p, base); err != nil {
			return nil, err
		}
		if d, err = ds.mkdir(p, base, name, 0o755); err != nil {
			return nil, err
		}
		return d, ds.u.marks.opaque(d.fd)
	}
	if st.Mode&unix.S_IFMT != unix.S_IFLNK {
		return nil, invalid("%s is a file of the layer, no directory", quote(name))
	}
	return ds.through(p, parent, base, links)
}

// through makes the directory that a symbolic link leads to, as it is with a
// link into a lower layer, and opens it through the link.
func (ds *dirs) through(p *dir, parent, base string, links int) (*dir, error) {
	const most = 40 // as the kernel has it
	if links == most {
		return nil, unix.ELOOP
	}
	target, err := readlink(p.fd, base)
	if err != nil {
		return nil, err
	}
	if !strings.HasPrefix(target, "/") {
		target = parent + "/" + target
	}
	if _, err := ds.follow(inRoot(target), create, links+1); err != nil {
		return nil, err
	}
	name := inRoot(parent + "/" + base)
	d, err := ds.follow(name, find, links+1)
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENOTDIR) {
		return nil, invalid("%s is a symbolic link to nothing", quote(name))
	}
	return d, err
}

// mkdir makes a directory and opens it.
func (ds *dirs) mkdir(p *dir, base, name string, mode uint32) (*dir, error) {
	length := p.length + 1 + len(base)
	if length >= unix.PathMax {
		return nil, invalid("it is too deep: the path has %d bytes", length)
	}
	if strings.HasPrefix(base, markPrefix) { // where a symbolic link led
		return nil, invalid("a name that starts with %s is no directory", markPrefix)
	}
	if err := unix.Mkdirat(p.fd, base, mode); err != nil {
		return nil, err
	}
	fd, err := openDir(p.fd, base)
	if err != nil {
		return nil, err
	}
	d, err := ds.keep(name, fd, length)
	if err != nil {
		return nil, err
	}
	return d, setOwner(d.fd, owner{mode: mode})
}

// keep keeps an open directory, and closes the one that was not used longest.
func (ds *dirs) keep(name string, fd, length int) (*dir, error) {
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		unix.Close(fd)
		return nil, err
	}
	// Two names may lead to one directory, which has one pair of times.
	if i := slices.IndexFunc(ds.kept, func(d *dir) bool { return d.ino == st.Ino }); i >= 0 {
		unix.Close(fd)
		d := ds.kept[i]
		d.name = name
		copy(ds.kept[1:], ds.kept[:i])
		ds.kept[0] = d
		return d, nil
	}
	if len(ds.kept) == openDirs {
		last := ds.kept[openDirs-1]
		ds.kept = ds.kept[:openDirs-1]
		if err := last.settle(); err != nil {
			unix.Close(fd)
			return nil, err
		}
	}
	d := &dir{name: name, fd: fd, ino: st.Ino, length: length, times: [2]unix.Timespec{st.Atim, st.Mtim}}
	ds.kept = slices.Insert(ds.kept, 0, d)
	return d, nil
}

// remove removes what is there under a name, and forgets the directories that
// may have been in it. Their parent stays open.
func (ds *dirs) remove(p *dir, base string) error {
	for _, d := range ds.kept {
		if d == p {
			continue
		}
		if err := d.settle(); err != nil {
			return err
		}
	}
	ds.kept = append(ds.kept[:0], p)
	return removeAll(p.fd, base)
}

// settle closes all directories.
func (ds *dirs) settle() error {
	var errs []error
	for _, d := range ds.kept {
		errs = append(errs, d.settle())
	}
	ds.kept = nil
	return errors.Join(errs...)
}

// close closes what is open after an error.
func (ds *dirs) close() {
	for _, d := range ds.kept {
		unix.Close(d.fd)
	}
	ds.kept = nil
}

func (d *dir) settle() error {
	defer unix.Close(d.fd)
	if err := setTimes(d.fd, d.times); err != nil {
		return fmt.Errorf("set the times of %s: %w", quote(d.name), err)
	}
	return nil
}
