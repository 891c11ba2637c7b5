package container

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"berth"
	"berth/internal/crash"
	"berth/internal/hostroot"
	"berth/internal/oci"
	"berth/internal/store"
)

// Ended is what a monitor calls when its container has ended: it takes away what
// is left, and starts the container again if that is its policy.
func (s *Service) Ended(ctx context.Context, id string) error {
	c, r, unlock, err := s.ending(ctx, id)
	if err != nil {
		return err
	}
	if r != nil {
		// Whoever was quicker may have started it again.
		if s.dead(*r) || !oci.Alive(r.First) {
			err = s.settle(ctx, &c, r)
		}
		unlock()
	}
	if err != nil {
		return err
	}
	return s.revive(ctx, id)
}

// revive starts a container again that should run, when its time has come. This
// is the one thing that waits; it holds no lock while it does.
func (s *Service) revive(ctx context.Context, id string) error {
	c, r, err := s.find(ctx, id)
	if errors.Is(err, berth.ErrNotFound) || err == nil && (r != nil || !c.Wanted) {
		return nil
	}
	if err != nil {
		return err
	}
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(time.Until(c.Last.Finished.Add(c.Delay))):
	}
	c, r, unlock, err := s.locked(ctx, id)
	if errors.Is(err, berth.ErrNotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	defer unlock()
	if r != nil || !c.Wanted {
		return nil // somebody was quicker, or does not want it any more
	}
	c.RestartCount++
	return s.start(ctx, &c, nil)
}

// ending is locked, for a run that is known to be over.
func (s *Service) ending(ctx context.Context, id string) (c berth.Container, r *berth.Run, unlock func(), err error) {
	s.tools()
	if unlock, err = s.lock(ctx, id); err != nil {
		return c, nil, nil, err
	}
	c, r, err = s.find(ctx, id)
	if errors.Is(err, berth.ErrNotFound) {
		err = nil // removed before
	}
	if err != nil || r == nil {
		unlock()
	}
	return c, r, unlock, err
}

// settle takes a run that is over out of the kernel and records how it ended.
func (s *Service) settle(ctx context.Context, c *berth.Container, r *berth.Run) error {
	c.Last.Started, c.Last.Finished = r.Started, time.Now().UTC()
	code, err := oci.ExitCode(s.exits(), c.ID)
	if err != nil {
		// No monitor has seen the end, or it saw none: as docker, when that is
		// all that is known.
		code, c.Last.Error = 255, "its monitor ended before it"
	}
	c.Last.Code = code
	c.Last.OOM, _ = s.group(c.ID).OOMKilled() // best effort: it says more, it decides nothing
	if err := s.clear(ctx, c, r); err != nil {
		return err
	}
	if c.AutoRemove {
		return s.forget(ctx, c)
	}
	c.Wanted = c.Wanted && restarts(*c)
	c.Delay = delay(c.Delay, c.Last)
	return s.update(ctx, *c)
}

// delay is docker's back-off: it doubles from 100 ms to a minute, and begins
// anew after a run of ten seconds.
func delay(before time.Duration, last berth.Exit) time.Duration {
	if last.Finished.Sub(last.Started) >= 10*time.Second {
		before = 0
	}
	return min(max(2*before, 100*time.Millisecond), time.Minute)
}

// clear takes away what of a run is in the kernel, whatever was reached. Each
// step may be done twice.
func (s *Service) clear(ctx context.Context, c *berth.Container, r *berth.Run) error {
	var errs []error
	// The networks go while the runtime deletes, if no process can be left.
	unwired := make(chan error, 1)
	over := s.ended(c.ID) && c.PidMode == ""
	if over {
		go func() { unwired <- s.unwire(ctx, c, r) }()
	}
	if oci.Alive(r.Monitor) && r.First.Pid != 0 && !s.ended(c.ID) {
		errs = append(errs, s.runtime.Kill(ctx, c.ID, syscall.SIGKILL, true))
	}
	if s.runtime.Knows(c.ID) {
		errs = append(errs, s.runtime.Delete(ctx, c.ID))
	}
	crash.Point("container.deleted")
	if group := s.group(c.ID); group.Exists() {
		errs = append(errs, group.Kill(), group.Remove())
	}
	if c.Rootfs == hostRoot {
		errs = append(errs, hostroot.Unmount(s.layers(c.ID)))
	}
	if !over {
		unwired <- s.unwire(ctx, c, r)
	}
	errs = append(errs, <-unwired)
	crash.Point("container.disconnected")
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("clean up after container %s: %w", c.Name, err)
	}
	if err := os.RemoveAll(s.bundle(c.ID)); err != nil {
		return err
	}
	// One that is attended and removed has no record that its status could be
	// read in.
	if !r.Attended || !c.AutoRemove {
		s.Forget(c.ID)
	}
	return s.store.Update(ctx, func(tx *store.Tx) error { return tx.DeleteRun(c.ID) })
}

func (s *Service) unwire(ctx context.Context, c *berth.Container, r *berth.Run) error {
	if r.Sandbox == "" {
		return nil
	}
	return s.o.Networks.Remove(ctx, r.Sandbox, c.ID)
}

// Forget takes away the exit status that a monitor wrote; whoever attends a
// container reads it first.
func (s *Service) Forget(id string) { os.Remove(filepath.Join(s.exits(), id)) }

// ended reports whether a monitor has written an exit status.
func (s *Service) ended(id string) bool {
	_, err := oci.ExitCode(s.exits(), id)
	return err == nil
}

// forget removes a container that is not in the kernel.
func (s *Service) forget(ctx context.Context, c *berth.Container) error {
	if c.Rootfs == hostRoot {
		if err := hostroot.Remove(s.layers(c.ID)); err != nil {
			return err
		}
	}
	if err := os.RemoveAll(s.dir(c.ID)); err != nil {
		return err
	}
	err := s.store.Update(ctx, func(tx *store.Tx) error { return tx.DeleteContainer(c.ID) })
	if err == nil {
		// Best effort: a lock file without its container is only a file.
		_ = s.store.Forget(store.LockContainer, c.ID)
	}
	return err
}

// Stop ends a container: first by its own signal, and after a while by SIGKILL.
// A signal of 0 is the container's own, and seconds of nil as well; negative ones
// are for ever.
func (s *Service) Stop(ctx context.Context, ref string, signal syscall.Signal, seconds *int) error {
	c, r, unlock, err := s.locked(ctx, ref)
	if err != nil {
		return err
	}
	c.Wanted = false
	err = s.update(ctx, c)
	unlock()
	if err != nil || r == nil {
		return err
	}
	if signal == 0 {
		signal = syscall.SIGTERM
		if c.StopSignal != "" {
			if signal, err = oci.ParseSignal(c.StopSignal); err != nil {
				return err
			}
		}
	}
	wait := 10 * time.Second
	if seconds == nil {
		seconds = c.StopTimeout
	}
	if seconds != nil {
		wait = time.Duration(*seconds) * time.Second
	}
	if wait != 0 {
		if r.Paused {
			if err := s.Unpause(ctx, c.ID); err != nil {
				return err
			}
		}
		if err := s.runtime.Kill(ctx, c.ID, signal, false); err != nil && oci.Alive(r.First) {
			return fmt.Errorf("stop container %s: %w", c.Name, err)
		}
		if over, err := s.over(ctx, *r, wait); over || err != nil {
			return err
		}
	}
	return s.kill(ctx, c, *r)
}

// kill ends a container at once, and waits until it has gone.
func (s *Service) kill(ctx context.Context, c berth.Container, r berth.Run) error {
	// Its processes end with the first one, which needs no runtime; not if it has
	// the processes of others around it, or is paused and takes no signal.
	end := func() error { return oci.Signal(r.First, syscall.SIGKILL) }
	if c.PidMode != "" || r.Paused {
		end = func() error { return s.runtime.Kill(ctx, c.ID, syscall.SIGKILL, true) }
	}
	if err := end(); err != nil && oci.Alive(r.First) {
		return fmt.Errorf("kill container %s: %w", c.Name, err)
	}
	if over, err := s.over(ctx, r, 30*time.Second); err != nil || over {
		return err
	}
	return fmt.Errorf("container %s does not end: %w", c.Name, berth.ErrInUse)
}

// Kill sends a container a signal.
func (s *Service) Kill(ctx context.Context, ref string, signal syscall.Signal) error {
	c, r, unlock, err := s.locked(ctx, ref)
	if err != nil {
		return err
	}
	defer unlock()
	if r == nil {
		return fmt.Errorf("kill container %s: it does not run: %w", c.Name, berth.ErrInvalid)
	}
	if err := s.runtime.Kill(ctx, c.ID, signal, false); err != nil {
		return fmt.Errorf("kill container %s: %w", c.Name, err)
	}
	return nil
}

// Remove removes containers and all that is kept of them. One that runs is
// refused unless force.
func (s *Service) Remove(ctx context.Context, ref string, force bool) error {
	c, r, unlock, err := s.locked(ctx, ref)
	if err != nil {
		return err
	}
	if r != nil {
		c.Wanted = false
		err := s.update(ctx, c)
		unlock()
		if err != nil {
			return err
		}
		if !force {
			return fmt.Errorf("remove container %s: it runs: stop it first, or use --force: %w", c.Name, berth.ErrInUse)
		}
		if err := s.kill(ctx, c, *r); err != nil {
			return err
		}
		if c, r, unlock, err = s.locked(ctx, c.ID); err != nil {
			if errors.Is(err, berth.ErrNotFound) {
				return nil // with --rm it has gone by itself
			}
			return err
		}
		if r != nil {
			unlock()
			return fmt.Errorf("remove container %s: it was started meanwhile: %w", c.Name, berth.ErrInUse)
		}
	}
	defer unlock()
	return s.forget(ctx, &c)
}

// Pause stops all processes of a container where they are.
func (s *Service) Pause(ctx context.Context, ref string) error { return s.freeze(ctx, ref, true) }

// Unpause lets them go on.
func (s *Service) Unpause(ctx context.Context, ref string) error { return s.freeze(ctx, ref, false) }

func (s *Service) freeze(ctx context.Context, ref string, on bool) error {
	c, r, unlock, err := s.locked(ctx, ref)
	if err != nil {
		return err
	}
	defer unlock()
	do, what := s.runtime.Resume, "unpause"
	if on {
		do, what = s.runtime.Pause, "pause"
	}
	switch {
	case r == nil:
		return fmt.Errorf("%s container %s: it does not run: %w", what, c.Name, berth.ErrInvalid)
	case r.Paused == on && on:
		return fmt.Errorf("pause container %s: it is paused already: %w", c.Name, berth.ErrInvalid)
	case r.Paused == on:
		return fmt.Errorf("unpause container %s: it is not paused: %w", c.Name, berth.ErrInvalid)
	}
	if err := do(ctx, c.ID); err != nil {
		return fmt.Errorf("%s container %s: %w", what, c.Name, err)
	}
	r.Paused = on
	return s.putRun(ctx, *r)
}

// Reconcile takes away what died by other means, and returns the names of the
// containers it was about.
func (s *Service) Reconcile(ctx context.Context) (names []string, err error) {
	var runs []berth.Run
	err = s.store.View(ctx, func(tx *store.Tx) (err error) {
		runs, err = tx.Runs()
		return err
	})
	var errs []error
	for _, r := range runs {
		if !s.dead(r) {
			continue
		}
		c, now, unlock, err := s.ending(ctx, r.Container)
		if err != nil || now == nil {
			errs = append(errs, err)
			continue
		}
		if s.dead(*now) {
			errs = append(errs, s.settle(ctx, &c, now))
			names = append(names, c.Name)
		}
		unlock()
		errs = append(errs, s.revive(ctx, c.ID))
	}
	return names, errors.Join(append(errs, err)...)
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
