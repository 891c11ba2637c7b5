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
	out, err := s.records(ctx)
	for i := range out {
		s.judge(&out[i])
	}
	return out, err
}

// records are those of all containers, and of their runs.
func (s *Service) records(ctx context.Context) (out []Detail, err error) {
	err = s.store.View(ctx, func(tx *store.Tx) error {
		all, err := tx.Containers()
		if err != nil {
			return err
		}
		runs, err := tx.Runs()
		if err != nil {
			return err
		}
		of := make(map[string]berth.Run, len(runs))
		for _, r := range runs {
			of[r.Container] = r
		}
		for _, c := range all {
			out = append(out, Detail{Container: c, Run: of[c.ID]})
		}
		return nil
	})
	return out, err
}

// Inspect returns one container.
func (s *Service) Inspect(ctx context.Context, ref string) (Detail, error) {
	c, r, err := s.find(ctx, ref)
	d := Detail{Container: c, Run: deref(r)}
	s.judge(&d)
	return d, err
}

// judge says where a container stands, also one that has just ended.
func (s *Service) judge(d *Detail) {
	d.State = s.state(d.Container, d.Run)
	if d.Run.Container != "" && d.State == Exited && s.dead(d.Run) {
		s.tools()
		d.Last, d.Run = s.end(d.Run), berth.Run{}
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
