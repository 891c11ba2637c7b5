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
	var out []Detail
	err := s.store.View(ctx, func(tx *store.Tx) error {
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
	for i := range out {
		out[i].State = s.state(out[i].Container, out[i].Run)
	}
	return out, err
}

// Inspect returns one container.
func (s *Service) Inspect(ctx context.Context, ref string) (Detail, error) {
	c, r, err := s.find(ctx, ref)
	d := Detail{Container: c}
	if r != nil {
		d.Run = *r
	}
	d.State = s.state(c, d.Run)
	return d, err
}

func (s *Service) state(c berth.Container, r berth.Run) State {
	switch {
	case r.Container == "" && c.Wanted && !c.Last.Finished.IsZero():
		return Restarting
	case r.Container == "" && c.Last.Finished.IsZero():
		return Created
	case r.Container == "" || s.ended(c.ID):
		return Exited
	case r.Monitor.Pid == 0:
		return Created // being made
	case !oci.Alive(r.Monitor):
		return Dead
	case r.Paused:
		return Paused
	}
	return Running
}
