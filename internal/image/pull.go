package image

import (
	"context"
	"errors"
	"fmt"
	"sync"

	"berth"

	v1 "github.com/google/go-containerregistry/pkg/v1"
)

// What an Event says of a layer, in Docker's words.
const (
	Waiting     = "Waiting"
	Fetching    = "Pulling fs layer"
	Downloading = "Downloading"
	Complete    = "Pull complete"
	Exists      = "Already exists"
)

// An Event says how far a layer is. A layer ends with Complete or Exists.
type Event struct {
	Layer          string // the first 12 hex digits of its digest
	Status         string
	Current, Total int64 // bytes, compressed
}

// PullOptions are how an image is pulled.
type PullOptions struct {
	// Platform is OS/ARCHITECTURE or OS/ARCHITECTURE/VARIANT. "": this machine,
	// or whatever the image is for if there is only one.
	Platform string
	// Progress is told how far the layers are, by one goroutine at a time.
	// nil: nobody is.
	Progress func(Event)
}

// Pull brings in the image of a name, as a registry has it now. What the store
// has of it is not fetched again; of two pulls at once each layer is fetched by
// one.
func (s *Store) Pull(ctx context.Context, ref string, o PullOptions) (Image, error) {
	r, err := parse(ref)
	if err != nil {
		return Image{}, err
	}
	want, err := parsePlatform(o.Platform)
	if err != nil {
		return Image{}, err
	}
	end, err := s.begin(ctx)
	if err != nil {
		return Image{}, fmt.Errorf("pull %s: %w", Short(r.String()), full(err))
	}
	err = s.pull(ctx, r, want, o)
	var img Image
	if err == nil {
		img, err = s.Find(ctx, r.String())
	}
	end()
	if err != nil {
		return Image{}, fmt.Errorf("pull %s: %w", Short(r.String()), err)
	}
	s.tidy(ctx)
	return img, nil
}

// pull asks the mirrors, and then the registry itself.
func (s *Store) pull(ctx context.Context, r reference, want v1.Platform, o PullOptions) error {
	tell := inTurn(o.Progress)
	var failed error
	if r.registry == hub {
		for _, m := range s.mirrors {
			err := s.pullFrom(ctx, m, r, want, o, tell)
			if err == nil || ctx.Err() != nil {
				return err
			}
			failed = errors.Join(failed, fmt.Errorf("mirror %s: %w", m, err))
		}
	}
	err := s.pullFrom(ctx, r.registry, r, want, o, tell)
	if err != nil && failed != nil {
		return fmt.Errorf("%w (%s)", err, clip(failed.Error()))
	}
	return err
}

func (s *Store) pullFrom(ctx context.Context, registry string, r reference, want v1.Platform, o PullOptions, tell func(Event)) error {
	rep, err := s.connect(ctx, registry, r.path)
	if err != nil {
		return err
	}
	id := r.digest
	if id == "" {
		id = r.tag
	}
	data, d, err := rep.manifest(ctx, id)
	if err != nil {
		return err
	}
	// The digest of an index or of an image: either is what the name means.
	img := incoming{names: []string{r.String()}, source: r.repo() + "@" + d.Digest.String()}
	if r.digest != "" {
		img.names = []string{""}
	}
	for depth := 0; d.MediaType.IsIndex(); depth++ {
		if depth == 3 {
			return fmt.Errorf("an index of an index of an index: %w", berth.ErrInvalid)
		}
		one, err := choose(data, d.MediaType, want)
		if err != nil {
			return err
		}
		if data, d, err = rep.manifest(ctx, one.Digest.String()); err != nil {
			return fmt.Errorf("manifest for %s: %w", want, err)
		}
	}
	if d.MediaType.IsSchema1() {
		return fmt.Errorf("the registry has it in a format that Docker gave up in 2019 (schema 1): push it again: %w", berth.ErrInvalid)
	}
	img.manifest, img.d = data, d
	if o.Platform != "" {
		img.check = func(cf *v1.ConfigFile) error {
			if have := platform(cf); serves(have, want) == 0 {
				return fmt.Errorf("the image is for %s, not for %s: %w", clip(have.String()), want, berth.ErrNotFound)
			}
			return nil
		}
	}
	return s.add(ctx, img, rep.open, tell)
}

// inTurn lets one goroutine at a time tell.
func inTurn(progress func(Event)) func(Event) {
	if progress == nil {
		return func(Event) {}
	}
	var mu sync.Mutex
	return func(e Event) {
		mu.Lock()
		defer mu.Unlock()
		progress(e)
	}
}
