package image

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"

	"berth"
	"berth/internal/layer"

	v1 "github.com/google/go-containerregistry/pkg/v1"
)

// Fill adds to a container that is wished for what its image says, where its
// user has said nothing, as Docker does: a command of the user's replaces the
// image's, an entry point drops it, and variables and labels are the user's
// before the image's. Its error matches [berth.ErrInvalid] when nothing says
// what to run.
func (img Image) Fill(c *berth.Container) error {
	c.ImageID = img.ID
	p, say := &c.Process, img.Config
	if len(p.Entrypoint) == 0 {
		if len(p.Command) == 0 {
			p.Command = slices.Clone(say.Cmd)
		}
		p.Entrypoint = slices.Clone(say.Entrypoint)
	}
	// --entrypoint "" is no entry point, not the image's.
	p.Entrypoint = slices.DeleteFunc(p.Entrypoint, func(s string) bool { return s == "" && len(p.Entrypoint) == 1 })
	if len(p.Entrypoint)+len(p.Command) == 0 {
		return fmt.Errorf("image %s says no command: say what to run behind it: %w", c.Image, berth.ErrInvalid)
	}
	p.Env = environment(say.Env, p.Env)
	if p.Dir == "" {
		p.Dir = say.WorkingDir
	}
	if p.User == "" {
		p.User = say.User
	}
	if c.StopSignal == "" {
		c.StopSignal = say.StopSignal
	}
	labels := map[string]string{}
	for k, v := range say.Labels {
		labels[k] = v
	}
	for k, v := range c.Labels {
		labels[k] = v
	}
	if len(labels) > 0 {
		c.Labels = labels
	}
	for v := range say.Volumes {
		if !slices.ContainsFunc(c.Mounts, func(m berth.Mount) bool { return m.Target == v }) {
			c.Volumes = append(c.Volumes, v)
		}
	}
	slices.Sort(c.Volumes)
	for port := range say.ExposedPorts {
		if !strings.Contains(port, "/") {
			port += "/tcp"
		}
		if !slices.Contains(c.Net.Exposed, port) {
			c.Net.Exposed = append(c.Net.Exposed, port)
		}
	}
	slices.Sort(c.Net.Exposed)
	return nil
}

// environment are the image's variables, unless they are set again, and then
// the user's.
func environment(image, user []string) []string {
	var env []string
	for _, v := range image {
		name, _, _ := strings.Cut(v, "=")
		if !slices.ContainsFunc(user, func(u string) bool { n, _, _ := strings.Cut(u, "="); return n == name }) {
			env = append(env, v)
		}
	}
	return append(env, user...)
}

// Copy writes the files of an image's layers into a new directory: for a file
// system that no overlay can be mounted on. What is left of an attempt that
// failed is removed.
func (s *Store) Copy(ctx context.Context, id, dir string) (err error) {
	end, err := s.begin(ctx)
	if err != nil {
		return err
	}
	defer end()
	x, err := s.readIndex()
	if err != nil {
		return err
	}
	i := slices.IndexFunc(x, func(d v1.Descriptor) bool { return idOf(d) == id })
	if i < 0 {
		return fmt.Errorf("image %s: %w", id, berth.ErrNotFound)
	}
	m, _, err := s.documents(x[i])
	if err != nil {
		return err
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, os.RemoveAll(dir))
		}
	}()
	for _, d := range m.Layers {
		if err := s.unpackInto(ctx, dir, s.blobPath(d.Digest)); err != nil {
			return fmt.Errorf("copy layer %.19s: %w", d.Digest, full(err))
		}
	}
	return nil
}

// unpackInto unpacks a layer over those below it. It was verified when it came.
func (s *Store) unpackInto(ctx context.Context, dir, blob string) error {
	f, err := os.Open(blob)
	if err != nil {
		return err
	}
	defer f.Close()
	plain, done, err := decompress(f)
	if err != nil {
		return err
	}
	defer done()
	_, err = layer.Unpack(ctx, dir, plain, layer.Options{Form: layer.Onto})
	return err
}

// Sizes are the bytes of the files of each of an image's layers, lowest first.
func (s *Store) Sizes(img Image) []int64 {
	var sizes []int64
	for _, l := range img.Layers {
		_, hex, _ := strings.Cut(l, ":")
		sizes = append(sizes, s.layerSize(hex))
	}
	return sizes
}
