package container

import (
	"context"

	"berth"
	"berth/internal/oci"
	"berth/internal/store"
)

// A State is where a container stands, in docker's words.
type State string

// The states. A container whose monitor has died is dead until the next verb
// takes it away.
const (
	Created    State = "created"
	Running    State = "running"
	Paused     State = "paused"
	Restarting State = "restarting"
	Exited     State = "exited"
	Dead       State = "dead"
)

// A Detail is a container with what of it is in the kernel.
type Detail struct {
	berth.Container
	State State
	Run   berth.Run // zero if it does not run
}

// List returns all containers, by id.
func (s *Service) List(ctx context.Context) ([]Detail, error) {
	all, runs, err := s.records(ctx)
	out := make([]Detail, len(all))
	for i, c := range all {
		out[i] = Detail{Container: c, Run: runs[c.ID]}
		s.judge(ctx, &out[i])
	}
	return out, err
}

// records are all containers, by id, and all runs.
func (s *Service) records(ctx context.Context) (all []berth.Container, runs map[string]berth.Run, err error) {
	runs = map[string]berth.Run{}
	err = s.store.View(ctx, func(tx *store.Tx) error {
		if all, err = tx.Containers(); err != nil {
			return err
		}
		list, err := tx.Runs()
		for _, r := range list {
			runs[r.Container] = r
		}
		return err
	})
	return all, runs, err
}

// Inspect returns one container.
func (s *Service) Inspect(ctx context.Context, ref string) (Detail, error) {
	c, r, err := s.find(ctx, ref)
	d := Detail{Container: c, Run: deref(r)}
	s.judge(ctx, &d)
	return d, err
}

// judge says where a container stands, also one that has just ended.
func (s *Service) judge(ctx context.Context, d *Detail) {
	d.State = s.state(d.Container, d.Run)
	if d.State == Dead {
		// Or it was taken away since the record was read, and started again.
		if c, r, err := s.find(ctx, d.ID); err == nil && deref(r).Monitor != d.Run.Monitor {
			d.Container, d.Run = c, deref(r)
			d.State = s.state(d.Container, d.Run)
		}
	}
	if d.Run.Container != "" && d.State == Exited && s.dead(d.Run) {
		s.tools()
		s.conclude(&d.Container, d.Run)
		d.Run = berth.Run{}
		d.State = s.state(d.Container, d.Run)
	}
}

func (s *Service) state(c berth.Container, r berth.Run) State {
	if r.Started.IsZero() { // what is being started is not yet
		switch {
		case c.Last.Finished.IsZero():
			return Created
		case c.Wanted:
			return Restarting
		}
		return Exited
	}
	switch {
	case s.ended(c.ID):
		return Exited
	case !oci.Alive(r.Monitor):
		return Dead
	case r.Paused:
		return Paused
	}
	return Running
}
