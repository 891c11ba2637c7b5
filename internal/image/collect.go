package image

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"

	"berth/internal/crash"

	"golang.org/x/sys/unix"
)

// tidy removes garbage, best effort: what it finds wrong is not of the image
// that was brought in, and Prune says it.
func (s *Store) tidy(ctx context.Context) { _, _ = s.collected(ctx) }

// collect removes garbage, unless somebody makes or reads blobs now: who ends
// last collects.
func (s *Store) collect(ctx context.Context) error {
	_, err := s.collected(ctx)
	return err
}

// collected is collect; it returns the bytes that were freed.
func (s *Store) collected(ctx context.Context) (int64, error) {
	unlock, err := s.tryLock(lockStore, unix.LOCK_EX)
	if errors.Is(err, errHeld) {
		return 0, nil
	}
	if err != nil {
		return 0, err
	}
	defer unlock()
	return s.sweep(ctx)
}

// sweep removes what the index does not reach, and returns the bytes that
// this has freed. The caller has lockStore alone.
func (s *Store) sweep(ctx context.Context) (int64, error) {
	unlock, err := s.lock(ctx, lockIndex, unix.LOCK_EX)
	if err != nil {
		return 0, err
	}
	defer unlock()
	live, err := s.reachable()
	if err != nil {
		return 0, err
	}
	var freed int64
	for _, dir := range []string{"blobs/sha256", "layers", "tmp", "locks"} {
		entries, err := os.ReadDir(s.path(dir))
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return freed, fmt.Errorf("clean image store: %w", err)
		}
		for _, e := range entries {
			keep := live[dir+"/"+e.Name()] || dir == "locks" && slices.Contains([]string{lockStore, lockHold, lockIndex}, e.Name())
			if keep {
				continue
			}
			n, err := s.drop(dir, e.Name())
			if err != nil {
				return freed, fmt.Errorf("clean image store: %w", err)
			}
			freed += n
		}
	}
	return freed, nil
}

// reachable lists what the index leads to, as DIR/NAME.
func (s *Store) reachable() (map[string]bool, error) {
	x, err := s.readIndex()
	if err != nil {
		return nil, err
	}
	live := map[string]bool{}
	for _, d := range x {
		m, cf, err := s.documents(d)
		if err != nil {
			return nil, fmt.Errorf("clean image store: image %.19s: %w", idOf(d), err)
		}
		live["blobs/sha256/"+d.Digest.Hex] = true
		live["blobs/sha256/"+m.Config.Digest.Hex] = true
		for _, l := range m.Layers {
			live["blobs/sha256/"+l.Digest.Hex] = true
		}
		for _, h := range cf.RootFS.DiffIDs {
			live["layers/"+h.Hex] = true
		}
	}
	return live, nil
}

// drop removes one blob or layer. A layer is renamed first, so that what is
// half removed is never taken for one.
func (s *Store) drop(dir, name string) (freed int64, err error) {
	path := s.path(dir, name)
	switch dir {
	case "layers":
		freed = s.layerSize(name)
		gone := s.path("tmp", "gone-"+name)
		if err := os.RemoveAll(gone); err != nil {
			return 0, err
		}
		if err := os.Rename(path, gone); err != nil {
			return 0, err
		}
		path = gone
		crash.Point("image.between-rename-and-remove")
	case "blobs/sha256":
		if info, err := os.Lstat(path); err == nil {
			freed = info.Size()
		}
	case "tmp":
		freed = treeSize(path)
	}
	err = os.RemoveAll(path)
	crash.Point("image.after-drop")
	return freed, err
}

// treeSize adds up the files of a tree.
func treeSize(dir string) (n int64) {
	_ = filepath.WalkDir(dir, func(_ string, e fs.DirEntry, err error) error {
		if err != nil || !e.Type().IsRegular() {
			return nil //nolint:nilerr // as much as can be seen
		}
		if info, err := e.Info(); err == nil {
			n += info.Size()
		}
		return nil
	})
	return n
}
