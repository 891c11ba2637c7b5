package container

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"syscall"

	"berth"
)

// Prune removes a container unless it runs, or is about to be started again, and
// returns how many bytes that gave back. One that is refused is an error that
// matches [berth.ErrInUse], and does not change.
func (s *Service) Prune(ctx context.Context, ref string) (freed int64, err error) {
	c, r, unlock, err := s.locked(ctx, ref)
	if err != nil {
		return 0, err
	}
	defer unlock()
	if r != nil || s.state(c, berth.Run{}) == Restarting {
		return 0, fmt.Errorf("remove container %s: it runs: %w", c.Name, berth.ErrInUse)
	}
	if freed, err = diskUse(s.dir(c.ID)); err != nil {
		return 0, err
	}
	return freed, s.forget(ctx, &c)
}

// diskUse sums up the blocks of all files below a directory.
func diskUse(dir string) (bytes int64, err error) {
	err = filepath.WalkDir(dir, func(_ string, d fs.DirEntry, err error) error {
		var info fs.FileInfo
		if err == nil {
			info, err = d.Info()
		}
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err != nil {
			return err
		}
		if st, ok := info.Sys().(*syscall.Stat_t); ok {
			bytes += st.Blocks * 512 // stat(2): in units of 512 bytes, whatever the disk's
		}
		return nil
	})
	return bytes, err
}
