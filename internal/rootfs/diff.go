package rootfs

import (
	"cmp"
	"errors"
	"io/fs"
	"net/url"
	"os"
	"path/filepath"
	"slices"

	"golang.org/x/sys/unix"
)

// A Change is a path that is not as on the host.
type Change struct {
	Path string
	Kind Kind
}

// A Kind is what docker diff calls it.
type Kind byte

// The kinds of changes.
const (
	Added   Kind = 'A'
	Changed Kind = 'C'
	Deleted Kind = 'D'
)

// Diff lists what a container that keeps its root in dir changed, in the order
// of paths. A directory with a change in it is changed itself. It does not
// matter whether the container runs.
func Diff(dir string) ([]Change, error) {
	layers, err := os.ReadDir(filepath.Join(dir, layersDir))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil // never mounted
	} else if err != nil {
		return nil, err
	}
	// "/" of the container is made anew in memory: compared is with one like it.
	base, err := os.MkdirTemp("", "berth-base-")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(base)
	all, links, err := trees(host, nil)
	if err != nil {
		return nil, err
	}
	if err := makeBase(base, all, links); err != nil {
		return nil, err
	}
	var d diff
	for _, l := range layers {
		path, err := url.PathUnescape(l.Name())
		if err != nil {
			return nil, err
		}
		upper := filepath.Join(dir, layersDir, l.Name(), "upper")
		lower := filepath.Join(host, path)
		if path == "/" {
			lower = base
		}
		if path == "/" || len(names(upper)) == 0 {
			err = d.children(upper, lower, path, false)
		} else {
			err = d.entry(upper, lower, path, false)
		}
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil, err
		}
	}
	return withParents(d.changes), nil
}

// withParents adds the directories above the changes, and sorts.
func withParents(changes []Change) []Change {
	kinds := map[string]Kind{}
	for _, c := range changes {
		kinds[c.Path] = c.Kind
	}
	for _, c := range changes {
		for dir := filepath.Dir(c.Path); dir != "/"; dir = filepath.Dir(dir) {
			if kinds[dir] == 0 {
				kinds[dir] = Changed
			}
		}
	}
	all := make([]Change, 0, len(kinds))
	for path, kind := range kinds {
		all = append(all, Change{path, kind})
	}
	slices.SortFunc(all, func(a, b Change) int { return cmp.Compare(a.Path, b.Path) })
	return all
}

// A diff collects changes.
type diff struct{ changes []Change }

// entry looks at one entry of an upper directory; alone reports whether it is
// below an opaque directory, where nothing of what lies below shows through.
// Nothing lies below if lower is "".
func (d *diff) entry(upper, lower, path string, alone bool) error {
	var up, low unix.Stat_t
	if err := unix.Lstat(upper, &up); err != nil {
		return &os.PathError{Op: "stat", Path: upper, Err: err}
	}
	was := lower != "" && unix.Lstat(lower, &low) == nil
	kind := up.Mode & unix.S_IFMT
	if kind == unix.S_IFCHR && up.Rdev == 0 { // a whiteout
		if was {
			d.changes = append(d.changes, Change{path, Deleted})
		}
		return nil
	}
	if was {
		d.changes = append(d.changes, Change{path, Changed})
	} else {
		d.changes = append(d.changes, Change{path, Added})
	}
	if kind != unix.S_IFDIR {
		return nil
	}
	if !was || low.Mode&unix.S_IFMT != unix.S_IFDIR {
		lower = "" // a link would lead to the host's own files
	}
	return d.children(upper, lower, path, alone || opaque(upper))
}

// children looks at what is in a directory.
func (d *diff) children(upper, lower, path string, alone bool) error {
	inside, err := os.ReadDir(upper)
	if err != nil {
		return err
	}
	seen := map[string]bool{}
	for _, e := range inside {
		seen[e.Name()] = true
		under := ""
		if lower != "" {
			under = filepath.Join(lower, e.Name())
		}
		err := d.entry(filepath.Join(upper, e.Name()), under, filepath.Join(path, e.Name()), alone)
		if err != nil && !errors.Is(err, fs.ErrNotExist) { // the container runs and removes files
			return err
		}
	}
	if !alone || lower == "" {
		return nil
	}
	for _, name := range names(lower) {
		if !seen[name] {
			d.changes = append(d.changes, Change{filepath.Join(path, name), Deleted})
		}
	}
	return nil
}

// opaque reports whether a directory of an upper layer hides what is below it.
func opaque(upper string) bool {
	value := make([]byte, 1)
	n, err := unix.Lgetxattr(upper, "trusted.overlay.opaque", value)
	return err == nil && n == 1 && value[0] == 'y'
}
