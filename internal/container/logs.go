package container

import (
	"context"
	"io"

	"berth/internal/oci"
)

// Logs writes what a container has written.
func (s *Service) Logs(ctx context.Context, ref string, o oci.LogOptions, stdout, stderr io.Writer) error {
	c, r, err := s.find(ctx, ref)
	if err != nil {
		return err
	}
	o.Keeps = logMax(c)
	ended := make(chan struct{})
	if r == nil || s.dead(*r) {
		close(ended)
	} else if o.Follow {
		watch, stop := context.WithCancel(ctx)
		defer stop()
		go func() {
			_ = oci.AwaitExit(watch, s.exits(), c.ID, r.First, r.Monitor) // without it, what is there is all there is
			close(ended)
		}()
	}
	return oci.Logs(ctx, s.LogPath(c.ID), o, ended, stdout, stderr)
}
