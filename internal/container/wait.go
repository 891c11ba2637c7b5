package container

import (
	"context"
	"errors"
	"os"
	"time"

	"berth"
	"berth/internal/oci"
)

// Wait waits until a container does not run, and returns its exit status.
func (s *Service) Wait(ctx context.Context, ref string) (int, error) {
	c, r, err := s.find(ctx, ref)
	if err != nil {
		return 0, err
	}
	for r != nil && oci.Alive(r.Monitor) {
		if _, err := oci.Await(ctx, r.Monitor, -1); err != nil {
			return 0, err
		}
		was := *r
		if c, r, err = s.find(ctx, c.ID); err != nil {
			return 0, err
		}
		if r != nil && r.Monitor == was.Monitor {
			break
		}
	}
	if r != nil {
		if _, _, unlock, err := s.locked(ctx, c.ID); err != nil {
			return 0, err
		} else {
			unlock()
		}
		c, _, err = s.find(ctx, c.ID)
	}
	return c.Last.Code, err
}

// over waits until a run is over and out of the kernel, and its monitor too. A
// negative time is for ever.
func (s *Service) over(ctx context.Context, r berth.Run, wait time.Duration) (bool, error) {
	ended, err := oci.Await(ctx, r.First, wait)
	if err != nil || !ended {
		return false, err
	}
	if err := oci.AwaitExit(ctx, s.exits(), r.Container, r.First, r.Monitor); err != nil && !errors.Is(err, os.ErrNotExist) {
		return false, err
	}
	// What the monitor runs now does the same, and has to start first; and the
	// monitor may have been killed.
	c, now, unlock, err := s.ending(ctx, r.Container)
	if err == nil && now != nil {
		if now.Monitor == r.Monitor { // it has not been started again
			err = s.settle(ctx, &c, now)
		}
		unlock()
	}
	if err != nil {
		return true, err
	}
	return oci.Await(ctx, r.Monitor, wait)
}

// Exit waits until a container that was started has ended, and returns its exit
// status. Whoever attends it calls [Service.Forget] when it has [Service.Gone]:
// what cleans up behind it reads the status too.
func (s *Service) Exit(ctx context.Context, id string) (int, error) {
	_, r, err := s.find(ctx, id)
	if err == nil && r != nil {
		err = oci.AwaitExit(ctx, s.exits(), id, r.First, r.Monitor)
	}
	if err != nil && !errors.Is(err, os.ErrNotExist) && !errors.Is(err, berth.ErrNotFound) {
		return 0, err
	}
	code, err := oci.ExitCode(s.exits(), id)
	if !errors.Is(err, os.ErrNotExist) {
		return code, err
	}
	// Nobody attends it, and it has been cleaned up; or its monitor wrote none.
	c, _, err := s.find(ctx, id)
	if err == nil && !c.Last.Finished.IsZero() {
		return c.Last.Code, nil
	}
	return 255, nil
}

// Gone waits until a container that has ended is out of the kernel.
func (s *Service) Gone(ctx context.Context, id string) error {
	_, r, err := s.find(ctx, id)
	if errors.Is(err, berth.ErrNotFound) || err == nil && r == nil {
		return nil
	}
	if err == nil {
		_, err = s.over(ctx, *r, -1)
	}
	return err
}
