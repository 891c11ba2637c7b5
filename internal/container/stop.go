package container

import (
	"context"
	"errors"
	"fmt"
	"os"
	"syscall"
	"time"

	"berth"
	"berth/internal/crash"
	"berth/internal/oci"
	"berth/internal/store"
)

// Stop ends a container: first by its own signal, and after a while by SIGKILL.
// A signal of 0 is the container's own, and seconds of nil as well; negative ones
// are for ever.
func (s *Service) Stop(ctx context.Context, ref string, signal syscall.Signal, seconds *int) error {
	c, r, unlock, err := s.locked(ctx, ref)
	if err != nil {
		return err
	}
	c.Wanted, c.Again = false, berth.Running{}
	err = s.update(ctx, c)
	keeper := oci.Keeper(s.bundle(c.ID))
	if r == nil {
		err = errors.Join(err, os.RemoveAll(s.bundle(c.ID))) // calls off a restart
	}
	unlock()
	crash.Point("container.unwanted")
	if err != nil || r == nil {
		return errors.Join(err, s.calledOff(ctx, keeper))
	}
	return s.quit(ctx, c, *r, signal, seconds)
}

// Restart ends a container as Stop does and starts it again. It stays wanted
// meanwhile: with --rm it is not removed, and should this process be killed,
// somebody else starts it.
func (s *Service) Restart(ctx context.Context, ref string, signal syscall.Signal, seconds *int) error {
	c, r, unlock, err := s.locked(ctx, ref)
	if err != nil {
		return err
	}
	if r != nil {
		c.Wanted, c.Again = true, oci.Identify(os.Getpid())
		err = s.update(ctx, c)
	}
	unlock()
	crash.Point("container.again")
	if r != nil && err == nil {
		err = s.quit(ctx, c, *r, signal, seconds)
	}
	if err != nil {
		return err
	}
	_, err = s.Start(ctx, c.ID, nil)
	return err
}

// quit ends a run: by a signal, and after a while by SIGKILL.
func (s *Service) quit(ctx context.Context, c berth.Container, r berth.Run, signal syscall.Signal, seconds *int) (err error) {
	if signal == 0 {
		if signal, err = stopSignal(c); err != nil {
			return err
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
		if err := oci.Signal(r.First, signal); err != nil {
			return fmt.Errorf("stop container %s: %w", c.Name, err)
		}
		if over, err := s.past(ctx, r, wait); over || err != nil {
			return err
		}
	}
	return s.kill(ctx, c, r)
}

// kill ends a container at once, and waits until it has gone.
func (s *Service) kill(ctx context.Context, c berth.Container, r berth.Run) error {
	err := oci.Signal(r.First, syscall.SIGKILL)
	// Its processes end with the first one; not if it has the processes of others
	// around it, or is paused and takes no signal.
	if c.PidMode != "" || r.Paused {
		err = errors.Join(err, s.group(c.ID).Kill())
	}
	if err != nil {
		return fmt.Errorf("kill container %s: %w", c.Name, err)
	}
	if over, err := s.past(ctx, r, 30*time.Second); err != nil || over {
		return err
	}
	return fmt.Errorf("container %s does not end: %w", c.Name, berth.ErrInUse)
}

// past waits until a run is over and what its monitor does at the end is done. A
// negative time is for ever.
func (s *Service) past(ctx context.Context, r berth.Run, wait time.Duration) (bool, error) {
	ended, err := oci.AwaitBundle(ctx, s.bundle(r.Container), r.First, r.Monitor, wait)
	if err != nil || !ended {
		return false, err
	}
	// The monitor may have been killed: then nobody has cleaned up.
	c, now, unlock, err := s.final(ctx, r.Container)
	if err != nil {
		return true, err
	}
	defer unlock()
	if now != nil && now.Monitor == r.Monitor { // else it has been started again
		err = s.settle(ctx, &c, now)
	}
	return true, errors.Join(err, s.last(ctx, r.Monitor), s.prune(ctx))
}

// last waits for the monitor of the last run: it is in a cgroup that shall go.
func (s *Service) last(ctx context.Context, monitor berth.Running) error {
	var runs []berth.Run
	err := s.store.View(ctx, func(tx *store.Tx) (err error) {
		runs, err = tx.Runs()
		return err
	})
	if err == nil && len(runs) == 0 {
		_, err = oci.Await(ctx, monitor, 10*time.Second)
	}
	return err
}

// stopSignal is what a container is asked by to end.
func stopSignal(c berth.Container) (syscall.Signal, error) {
	if c.StopSignal == "" {
		return syscall.SIGTERM, nil
	}
	return oci.ParseSignal(c.StopSignal)
}

// Kill sends a container a signal. One that is to end it is also the wish that it
// does not run, as with docker, and reaches a paused one.
func (s *Service) Kill(ctx context.Context, ref string, signal syscall.Signal) error {
	c, r, unlock, err := s.locked(ctx, ref)
	if err != nil {
		return err
	}
	defer unlock()
	if r == nil {
		return fmt.Errorf("kill container %s: it does not run: %w", c.Name, berth.ErrInvalid)
	}
	own, _ := stopSignal(c) // it was checked when the container was made
	ends := signal == syscall.SIGKILL || signal == own
	if ends && c.Wanted {
		c.Wanted = false
		if err := s.update(ctx, c); err != nil {
			return err
		}
	}
	if err := oci.Signal(r.First, signal); err != nil {
		return fmt.Errorf("kill container %s: %w", c.Name, err)
	}
	if ends && r.Paused {
		if err := s.runtime.Resume(ctx, c.ID); err != nil && oci.Alive(r.First) {
			return fmt.Errorf("kill container %s: %w", c.Name, err)
		}
		r.Paused = false
		return s.putRun(ctx, *r)
	}
	return nil
}

// Remove removes containers and all that is kept of them. One that runs is
// refused unless force.
func (s *Service) Remove(ctx context.Context, ref string, force bool) error {
	for again := false; ; again = true {
		c, r, unlock, err := s.locked(ctx, ref)
		if again && errors.Is(err, berth.ErrNotFound) {
			return nil // with --rm it has gone by itself
		}
		if err != nil {
			return err
		}
		if state := s.state(c, deref(r)); !force && (r != nil || state == Restarting) {
			unlock()
			what := "it runs"
			if state == Restarting {
				what = "it is restarting"
			}
			return fmt.Errorf("remove container %s: %s: stop it first, or use --force: %w", c.Name, what, berth.ErrInUse)
		}
		if r == nil {
			keeper := oci.Keeper(s.bundle(c.ID))
			err := s.forget(ctx, &c)
			unlock()
			return errors.Join(err, s.calledOff(ctx, keeper))
		}
		c.Wanted = false
		err = s.update(ctx, c)
		unlock()
		crash.Point("container.unwanted")
		if err != nil {
			return err
		}
		if err := s.kill(ctx, c, *r); err != nil {
			return err
		}
		crash.Point("container.killed")
		ref = c.ID // and again, should somebody have started it meanwhile
	}
}

// calledOff waits until who would have started a container again has ended.
func (s *Service) calledOff(ctx context.Context, keeper berth.Running) error {
	_, err := oci.Await(ctx, keeper, 10*time.Second) // it has nothing more to do
	return errors.Join(err, s.prune(ctx))
}

func deref(r *berth.Run) (out berth.Run) {
	if r != nil {
		out = *r
	}
	return out
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
