package rootfs

import (
	"errors"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"sync"

	"golang.org/x/sys/unix"
)

// cover makes in the directory over a layer that hides what an unprivileged
// user cannot read of src: a whiteout for each such entry, and the directories
// on the way to it.
func cover(src, over string) error {
	found, err := closedBelow(src)
	if err != nil {
		return err
	}
	for _, rel := range found {
		if err := copyDirs(src, over, filepath.Dir(rel)); err != nil {
			return err
		}
		if err := unix.Mknod(filepath.Join(over, rel), unix.S_IFCHR, 0); err != nil && !errors.Is(err, unix.EEXIST) {
			return &os.PathError{Op: "mknod", Path: rel, Err: err}
		}
	}
	return nil
}

// copyDirs makes the directories of a relative path as they are in src.
func copyDirs(src, over, rel string) error {
	if rel == "." {
		return nil
	}
	if err := copyDirs(src, over, filepath.Dir(rel)); err != nil {
		return err
	}
	var st unix.Stat_t
	if err := unix.Lstat(filepath.Join(src, rel), &st); err != nil {
		return err
	}
	to := filepath.Join(over, rel)
	if err := unix.Mkdir(to, 0o700); errors.Is(err, unix.EEXIST) {
		return nil
	} else if err != nil {
		return err
	}
	if err := unix.Chown(to, int(st.Uid), int(st.Gid)); err != nil {
		return err
	}
	return unix.Chmod(to, st.Mode&0o7777)
}

// A walk goes through the directories of a tree with several workers, as most
// of it is the kernel's work: 3 µs for an entry. All names are relative to an
// open directory, since the workers' threads are in another mount namespace.
type walk struct {
	root int
	more sync.Cond // on mu: there is a directory to read, or there will be none

	mu     sync.Mutex // guards the fields below
	dirs   []string   // not yet read
	busy   int        // workers that read one
	closed []string   // found
	err    error
}

// closedBelow lists the entries below src that an unprivileged user cannot
// read. What is in a closed directory is not listed.
func closedBelow(src string) ([]string, error) {
	root, err := unix.Open(src, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: src, Err: err}
	}
	defer unix.Close(root)
	w := &walk{root: root, dirs: []string{"."}}
	w.more.L = &w.mu
	var all sync.WaitGroup
	for range runtime.NumCPU() {
		all.Go(w.work)
	}
	all.Wait()
	slices.Sort(w.closed)
	return w.closed, w.err
}

// work reads directories until there are no more.
func (w *walk) work() {
	w.mu.Lock()
	defer w.mu.Unlock()
	for {
		for len(w.dirs) == 0 && w.busy > 0 {
			w.more.Wait()
		}
		if len(w.dirs) == 0 || w.err != nil {
			w.more.Broadcast()
			return
		}
		dir := w.dirs[len(w.dirs)-1]
		w.dirs = w.dirs[:len(w.dirs)-1]
		w.busy++
		w.mu.Unlock()
		dirs, closed, err := w.read(dir)
		w.mu.Lock()
		w.busy--
		w.dirs = append(w.dirs, dirs...)
		w.closed = append(w.closed, closed...)
		if err != nil && w.err == nil {
			w.err = err
		}
		w.more.Broadcast()
	}
}

// read looks at the entries of a directory.
func (w *walk) read(dir string) (dirs, hidden []string, err error) {
	fd, err := unix.Openat(w.root, dir, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if errors.Is(err, unix.ENOENT) {
		return nil, nil, nil // removed since it was listed
	} else if err != nil {
		return nil, nil, &os.PathError{Op: "open", Path: dir, Err: err}
	}
	f := os.NewFile(uintptr(fd), dir)
	defer f.Close()
	entries, err := f.ReadDir(-1)
	if err != nil {
		return nil, nil, err
	}
	for _, e := range entries {
		if e.Type() == os.ModeSymlink {
			continue
		}
		var st unix.Stat_t
		if err := unix.Fstatat(fd, e.Name(), &st, unix.AT_SYMLINK_NOFOLLOW); errors.Is(err, unix.ENOENT) {
			continue
		} else if err != nil {
			return nil, nil, &os.PathError{Op: "stat", Path: e.Name(), Err: err}
		}
		path := filepath.Join(dir, e.Name())
		switch {
		case closed(&st):
			hidden = append(hidden, path)
		case st.Mode&unix.S_IFMT == unix.S_IFDIR:
			dirs = append(dirs, path)
		}
	}
	return dirs, hidden, nil
}
