package container

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"berth"
	"berth/internal/crash"
	"berth/internal/oci"
	"berth/internal/rootfs"
	"berth/internal/store"
)

// Ended is what a monitor calls when its container has ended: it takes away what
// is left, and starts the container again if that is its policy.
func (s *Service) Ended(ctx context.Context, id string) error {
	s.tools()
	vigil, until, err := s.finish(ctx, id)
	if err != nil || vigil == nil {
		return err
	}
	defer vigil.End()
	// This is the one thing that waits; it holds no lock while it does.
	if off, err := vigil.Wait(ctx, until); off || err != nil {
		return err
	}
	c, r, unlock, err := s.locked(ctx, id)
	if errors.Is(err, berth.ErrNotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	defer unlock()
	if r != nil {
		return nil // somebody was quicker
	}
	return s.again(ctx, &c)
}

// finish is the part of Ended before it waits: until when, and with a vigil that
// calls it off; nil if there is nothing to wait for.
func (s *Service) finish(ctx context.Context, id string) (*oci.Vigil, time.Time, error) {
	c, r, unlock, err := s.final(ctx, id)
	if err != nil {
		return nil, time.Time{}, err
	}
	defer unlock()
	// Somebody may have settled it before, and started it anew: that run is none
	// of ours.
	if r != nil && (s.over(*r) || r.Monitor.Pid == os.Getppid()) {
		if err := s.settle(ctx, &c, r); err != nil {
			return nil, time.Time{}, err
		}
		r = nil
	}
	if r != nil || s.state(c, berth.Run{}) != Restarting || s.kept(c) || oci.ShuttingDown() {
		return nil, time.Time{}, nil
	}
	// The monitor has nothing more to do, and waits for all that descends from
	// this process (it is a subreaper, prctl(2)): the next monitor too.
	if err := oci.EndMonitor(s.bundle(id)); err != nil {
		return nil, time.Time{}, err
	}
	vigil, err := oci.KeepVigil(s.bundle(id))
	return vigil, c.Last.Finished.Add(c.Delay), err
}

// kept reports whether somebody is about to start a container again.
func (s *Service) kept(c berth.Container) bool {
	return oci.Alive(c.Again) || oci.Keeper(s.bundle(c.ID)).Pid != 0
}

// again starts a container that is locked and not in the kernel once more, if it
// is still wanted.
func (s *Service) again(ctx context.Context, c *berth.Container) error {
	if !c.Wanted {
		return nil
	}
	return s.start(ctx, c, nil)
}

// final is a container that is locked, whether it is there or not, and its run,
// if it has one, dead or alive.
func (s *Service) final(ctx context.Context, id string) (c berth.Container, r *berth.Run, unlock func(), err error) {
	s.tools()
	if unlock, err = s.lock(ctx, id); err != nil {
		return c, nil, nil, err
	}
	c, r, err = s.find(ctx, id)
	if errors.Is(err, berth.ErrNotFound) {
		s.forgotten.Store(id, true) // before; the lock that was made for us goes
		return c, nil, unlock, nil
	}
	if err != nil {
		unlock()
	}
	return c, r, unlock, err
}

// settle takes a run that is over out of the kernel and records how it ended.
func (s *Service) settle(ctx context.Context, c *berth.Container, r *berth.Run) error {
	if r.Started.IsZero() {
		// Whoever started it was killed: as if nobody had. It goes on being
		// wanted if it was to be started again.
		c.Wanted = c.Wanted && !c.Last.Finished.IsZero()
	} else {
		s.conclude(c, *r)
	}
	if !c.AutoRemove || c.Wanted {
		// First the record: the exit status is read again if this is the last
		// that is done.
		if err := s.update(ctx, *c); err != nil {
			return err
		}
		crash.Point("container.recorded")
	}
	return s.clear(ctx, c, r)
}

// conclude says how a run that is over has ended, and whether it is followed by
// another.
func (s *Service) conclude(c *berth.Container, r berth.Run) {
	if c.Last.Started.Equal(r.Started) {
		return // who recorded it was killed before the run was gone
	}
	c.Last = s.end(r)
	switch {
	case !c.Wanted:
	case c.Again.Pid != 0:
		c.RestartCount, c.Delay = 0, delay(0, c.Last)
	case restarts(*c):
		c.RestartCount++
		c.Delay = delay(c.Delay, c.Last)
	default:
		c.Wanted = false
	}
}

// end is how a run that is over has ended.
func (s *Service) end(r berth.Run) berth.Exit {
	e := berth.Exit{Started: r.Started, Finished: time.Now().UTC()}
	var err error
	if e.Code, err = oci.ExitCode(s.exits(), r.Container); err != nil {
		// No monitor has seen the end, or it saw none: as docker, when that is
		// all that is known.
		e.Code, e.Error = 255, "its monitor ended before it"
	}
	e.OOM, _ = s.group(r.Container).OOMKilled() // best effort: it says more, it decides nothing
	return e
}

// delay is docker's back-off: it doubles from 100 ms to a minute, and begins
// anew after a run of ten seconds.
func delay(before time.Duration, last berth.Exit) time.Duration {
	if last.Finished.Sub(last.Started) >= 10*time.Second {
		before = 0
	}
	return min(max(2*before, 100*time.Millisecond), time.Minute)
}

// clear takes away what of a run is in the kernel, whatever was reached, and
// with --rm all of the container, unless it is to be started again. Each step may be done twice.
func (s *Service) clear(ctx context.Context, c *berth.Container, r *berth.Run) error {
	var errs []error
	// The monitor first, for what it is about to do. One that has written the
	// exit status has done all; this may be what it runs at the end.
	if !s.ended(c.ID) {
		errs = append(errs, oci.EndMonitor(s.bundle(c.ID)))
	}
	// Once nothing of it runs, its networks go while the runtime deletes.
	group, unwired := s.group(c.ID), make(chan error, 1)
	if group.Exists() {
		errs = append(errs, group.Kill()) // the runtime waits for it in steps of 100 ms
	}
	go func() { unwired <- s.unwire(ctx, c, r) }()
	switch {
	case !s.runtime.Knows(c.ID):
	case oci.Alive(r.First): // a privileged one can leave its cgroup
		errs = append(errs, s.runtime.Delete(ctx, c.ID))
	default:
		errs = append(errs, s.runtime.Forget(ctx, c.ID))
	}
	crash.Point("container.deleted")
	if group.Exists() {
		errs = append(errs, group.Remove())
	}
	if made(c) {
		errs = append(errs, rootfs.Unmount(s.layers(c.ID)))
	}
	errs = append(errs, <-unwired)
	crash.Point("container.disconnected")
	errs = append(errs, os.RemoveAll(s.bundle(c.ID)), s.tell(c.ID, c.Last.Code))
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("clean up after container %s: %w", c.Name, err)
	}
	crash.Point("container.unbundled")
	if c.AutoRemove && !c.Wanted {
		// Before its run, without which nobody would know that it has ended.
		if err := s.forget(ctx, c); err != nil {
			return err
		}
	}
	if err := s.store.Update(ctx, func(tx *store.Tx) error { return tx.DeleteRun(c.ID) }); err != nil {
		return err
	}
	crash.Point("container.cleared")
	return errors.Join(gone(os.Remove(filepath.Join(s.exits(), c.ID))), s.prune(ctx))
}

func (s *Service) unwire(ctx context.Context, c *berth.Container, r *berth.Run) error {
	if r.Sandbox == "" {
		return nil
	}
	return s.o.Networks.Remove(ctx, r.Sandbox, c.ID)
}

// ended reports whether a monitor has written an exit status.
func (s *Service) ended(id string) bool {
	_, err := oci.ExitCode(s.exits(), id)
	return err == nil
}

// forget removes a container that is not in the kernel.
func (s *Service) forget(ctx context.Context, c *berth.Container) error {
	if err := os.RemoveAll(s.bundle(c.ID)); err != nil { // calls off a restart
		return err
	}
	err := s.store.Update(ctx, func(tx *store.Tx) error { return tx.DeleteContainer(c.ID) })
	if err != nil {
		return err
	}
	crash.Point("container.forgotten")
	return s.discard(c)
}

// discard removes what is kept of a container that is forgotten.
func (s *Service) discard(c *berth.Container) error {
	if made(c) {
		if err := rootfs.Remove(s.layers(c.ID)); err != nil {
			return err
		}
	}
	s.forgotten.Store(c.ID, true)
	return os.RemoveAll(s.dir(c.ID))
}

// restarts reports whether a container's policy is to start it again.
func restarts(c berth.Container) bool {
	switch c.Restart.Policy {
	case "always", "unless-stopped":
		return true
	case "on-failure":
		return c.Last.Code != 0 && (c.Restart.Retries == 0 || c.RestartCount < c.Restart.Retries)
	}
	return false
}
