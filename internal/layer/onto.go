package layer

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"

	"golang.org/x/sys/unix"
)

// staging is where a layer is unpacked before it is merged into the layers
// below: in the directory, under a name that no layer can have. What it shows
// then follows from what is there, as with an overlay, and the order of its
// entries has no say.
const staging = markPrefix + markPrefix + "layer"

// unpackOnto unpacks a layer and merges it into a directory.
func unpackOnto(ctx context.Context, root int, archive io.Reader, o Options) (_ Stats, err error) {
	if err := gone(removeAll(root, staging)); err != nil {
		return Stats{}, err
	}
	if err := unix.Mkdirat(root, staging, 0o755); err != nil {
		return Stats{}, err
	}
	layer, err := openDir(root, staging)
	if err != nil {
		return Stats{}, err
	}
	defer unix.Close(layer)
	if err := setOwner(layer, owner{mode: 0o755}); err != nil {
		return Stats{}, err
	}
	stats, err := unpackMarked(ctx, layer, nameMarks{}, archive, o)
	if err != nil {
		return stats, errors.Join(err, removeAll(root, staging))
	}
	of, err := readAttributes(layer)
	if err != nil {
		return stats, err
	}
	if err := merge(root, layer); err != nil {
		return stats, fmt.Errorf("merge a layer: %w", err)
	}
	if err := removeAll(root, staging); err != nil {
		return stats, err
	}
	return stats, of.set(root)
}

// merge moves what is in a directory of a layer into the one below.
func merge(below, layer int) error {
	err := unix.Faccessat(layer, markOpaque, unix.F_OK, 0)
	if err == nil {
		err = each(below, func(name string) error {
			if name == staging {
				return nil
			}
			return removeAll(below, name)
		})
	}
	if err != nil && !errors.Is(err, unix.ENOENT) {
		return err
	}
	err = each(layer, func(name string) error {
		hidden, ok := strings.CutPrefix(name, markPrefix)
		if !ok || name == markOpaque {
			return nil
		}
		return gone(removeAll(below, hidden))
	})
	if err != nil {
		return err
	}
	return each(layer, func(name string) error {
		if strings.HasPrefix(name, markPrefix) {
			return nil
		}
		return mergeOne(below, layer, name)
	})
}

func mergeOne(below, layer int, name string) error {
	from, err := openDir(layer, name)
	if notDir(err) {
		err := unix.Renameat(layer, name, below, name)
		if !errors.Is(err, unix.EISDIR) {
			return err
		}
		if err := removeAll(below, name); err != nil {
			return err
		}
		return unix.Renameat(layer, name, below, name)
	}
	if err != nil {
		return err
	}
	defer unix.Close(from)
	to, err := openDir(below, name)
	if notDir(err) {
		err = unix.Unlinkat(below, name, 0)
	}
	if gone(err) != nil {
		return err
	}
	if to < 0 {
		if err := unix.Mkdirat(below, name, 0o700); err != nil {
			return err
		}
		if to, err = openDir(below, name); err != nil {
			return err
		}
	}
	defer unix.Close(to)
	of, err := readAttributes(from)
	if err != nil {
		return err
	}
	if err := merge(to, from); err != nil {
		return err
	}
	return of.set(to)
}

func gone(err error) error {
	if errors.Is(err, unix.ENOENT) {
		return nil
	}
	return err
}

// attributes are those of a directory.
type attributes struct {
	owner  owner
	times  [2]unix.Timespec
	xattrs map[string][]byte
}

func readAttributes(fd int) (attributes, error) {
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return attributes{}, err
	}
	a := attributes{
		owner:  owner{int(st.Uid), int(st.Gid), st.Mode & 0o7777},
		times:  [2]unix.Timespec{st.Atim, st.Mtim},
		xattrs: map[string][]byte{},
	}
	names, err := listXattrs(fd)
	if err != nil {
		return a, err
	}
	for _, name := range names {
		size, err := unix.Fgetxattr(fd, name, nil)
		if err != nil {
			return a, err
		}
		value := make([]byte, size)
		if size > 0 {
			if size, err = unix.Fgetxattr(fd, name, value); err != nil {
				return a, err
			}
		}
		a.xattrs[name] = value[:size]
	}
	return a, nil
}

// set makes a directory have them, and no others.
func (a attributes) set(fd int) error {
	if err := setOwner(fd, a.owner); err != nil {
		return err
	}
	names, err := listXattrs(fd)
	if err != nil {
		return err
	}
	for _, name := range names {
		if _, ok := a.xattrs[name]; !ok {
			if err := unix.Fremovexattr(fd, name); err != nil {
				return err
			}
		}
	}
	for name, value := range a.xattrs {
		if err := setXattr(fd, name, value); err != nil {
			return err
		}
	}
	return setTimes(fd, a.times)
}

// listXattrs lists the attributes that a layer may bring.
func listXattrs(fd int) ([]string, error) {
	size, err := unix.Flistxattr(fd, nil)
	if errors.Is(err, unix.ENOTSUP) || err == nil && size == 0 {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	list := make([]byte, size)
	if size, err = unix.Flistxattr(fd, list); err != nil {
		return nil, err
	}
	var names []string
	for name := range strings.SplitSeq(string(list[:size]), "\x00") {
		if allowed(name) {
			names = append(names, name)
		}
	}
	return names, nil
}
