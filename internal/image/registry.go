package image

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"syscall"

	"berth"

	"github.com/docker/cli/cli/config"
	"github.com/docker/cli/cli/config/types"
	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/remote/transport"
)

// keys are the credentials of a docker configuration.
type keys struct {
	dir string // "": as Docker finds it
}

// Resolve returns the credentials for a repository, or for its registry.
func (k keys) Resolve(target authn.Resource) (authn.Authenticator, error) {
	if k.dir == "" {
		return authn.DefaultKeychain.Resolve(target)
	}
	cf, err := config.Load(k.dir)
	if err != nil {
		return nil, err
	}
	for _, key := range []string{target.String(), target.RegistryStr()} {
		if key == name.DefaultRegistry {
			key = authn.DefaultAuthKey
		}
		c, err := cf.GetAuthConfig(key)
		if err != nil {
			return nil, err
		}
		c.ServerAddress = ""
		if c != (types.AuthConfig{}) {
			return authn.FromConfig(authn.AuthConfig{Username: c.Username, Password: c.Password, Auth: c.Auth,
				IdentityToken: c.IdentityToken, RegistryToken: c.RegistryToken}), nil
		}
	}
	return authn.Anonymous, nil
}

// A repository is one of a registry, spoken to with the credentials it wants.
type repository struct {
	name.Repository
	puller *remote.Puller
	client *http.Client
	wire   *wire
}

// connect logs in to the registry of a repository.
func (s *Store) connect(ctx context.Context, registry, path string) (*repository, error) {
	var opts []name.Option
	if s.wire.trusts(registry) {
		opts = append(opts, name.Insecure)
	}
	reg, err := name.NewRegistry(registry, opts...)
	if err != nil {
		return nil, fmt.Errorf("registry %s: %w: %w", clip(registry), err, berth.ErrInvalid)
	}
	r := &repository{Repository: reg.Repo(path), wire: s.wire}
	auth, err := s.keys.Resolve(r)
	if err != nil {
		return nil, fmt.Errorf("credentials for %s: %s", registry, clip(err.Error()))
	}
	tr, err := transport.NewWithContext(ctx, reg, auth, s.wire, []string{r.Scope(transport.PullScope)})
	if err != nil {
		return nil, fmt.Errorf("registry %s: %w", registry, said(ctx, err))
	}
	r.client = &http.Client{Transport: tr}
	if r.puller, err = remote.NewPuller(remote.WithTransport(tr)); err != nil {
		return nil, err
	}
	return r, nil
}

// manifest returns a manifest or an index as the registry has it, and its
// descriptor. One that is asked for by its digest has that digest.
func (r *repository) manifest(ctx context.Context, id string) ([]byte, v1.Descriptor, error) {
	var ref name.Reference = r.Tag(id)
	if strings.Contains(id, ":") {
		ref = r.Digest(id)
	}
	d, err := r.puller.Get(ctx, ref)
	if err != nil {
		return nil, v1.Descriptor{}, said(ctx, err)
	}
	if len(d.Manifest) > maxDocument {
		return nil, v1.Descriptor{}, fmt.Errorf("the manifest has %d bytes, the most is %d: %w", len(d.Manifest), maxDocument, berth.ErrInvalid)
	}
	return d.Manifest, d.Descriptor, nil
}

// open returns the bytes of a blob. A connection that breaks is made again,
// and the blob goes on where it was.
func (r *repository) open(ctx context.Context, d v1.Descriptor) (io.ReadCloser, error) {
	b := &blob{repository: r, ctx: ctx, d: d}
	return b, b.reopen()
}

// A blob is being read from a registry.
type blob struct {
	*repository
	ctx    context.Context
	d      v1.Descriptor
	body   io.ReadCloser
	off    int64
	broken int   // how often, since
	since  int64 // where it broke first
}

func (b *blob) reopen() error {
	u := url.URL{Scheme: b.Scheme(), Host: b.RegistryStr(), Path: "/v2/" + b.RepositoryStr() + "/blobs/" + b.d.Digest.String()}
	req, err := http.NewRequestWithContext(b.ctx, http.MethodGet, u.String(), nil)
	if err != nil {
		return err
	}
	if b.off > 0 {
		req.Header.Set("Range", fmt.Sprintf("bytes=%d-%d", b.off, b.d.Size-1))
	}
	resp, err := b.client.Do(req)
	if err != nil {
		return said(b.ctx, err)
	}
	if err := transport.CheckError(resp, http.StatusOK, http.StatusPartialContent); err != nil {
		resp.Body.Close()
		return said(b.ctx, err)
	}
	left := b.d.Size - b.off
	if resp.StatusCode == http.StatusOK {
		left = b.d.Size
	} else if !strings.HasPrefix(resp.Header.Get("Content-Range"), "bytes "+strconv.FormatInt(b.off, 10)+"-") {
		resp.Body.Close()
		return fmt.Errorf("asked for the bytes from %d on, got %q: %w", b.off, clip(resp.Header.Get("Content-Range")), berth.ErrInvalid)
	}
	if n := resp.ContentLength; n >= 0 && n != left {
		resp.Body.Close()
		return fmt.Errorf("the registry has %d bytes, the manifest says %d: %w", n, left, berth.ErrInvalid)
	}
	if resp.StatusCode == http.StatusOK && b.off > 0 { // it does not know ranges
		if _, err := io.CopyN(io.Discard, resp.Body, b.off); err != nil {
			resp.Body.Close()
			return said(b.ctx, err)
		}
	}
	b.body = resp.Body
	return nil
}

// Read gives up when a blob breaks again and again without getting on.
func (b *blob) Read(p []byte) (int, error) {
	const progress = 1 << 20
	for {
		n, err := b.read(p)
		b.off += int64(n)
		if n > 0 {
			return n, nil
		}
		if err == nil || err == io.EOF && b.off >= b.d.Size {
			return 0, err
		}
		if b.ctx.Err() != nil {
			return 0, b.ctx.Err()
		}
		if b.body == nil && !cut(err) && !errors.Is(err, syscall.ECONNREFUSED) {
			return 0, fmt.Errorf("broke off after %d of %d bytes: %w", b.off, b.d.Size, err)
		}
		b.Close()
		if b.off-b.since >= progress {
			b.broken, b.since = 0, b.off
		}
		if b.broken++; b.broken >= b.wire.tries {
			return 0, fmt.Errorf("broke off after %d of %d bytes, %d times: %w", b.off, b.d.Size, b.broken, err)
		}
		if err := sleep(b.ctx, b.wire.pause<<(b.broken-1)); err != nil {
			return 0, err
		}
	}
}

func (b *blob) read(p []byte) (int, error) {
	if b.body == nil {
		if err := b.reopen(); err != nil {
			return 0, err
		}
	}
	n, err := b.body.Read(p)
	if err == io.EOF && b.off+int64(n) < b.d.Size {
		err = io.ErrUnexpectedEOF
	}
	return n, err
}

// Close lets go of the connection.
func (b *blob) Close() error {
	if b.body == nil {
		return nil
	}
	err := b.body.Close()
	b.body = nil
	return err
}

// said makes one line of what went wrong between us and a registry, with what
// to do about it.
func said(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return ctx.Err()
	}
	if e, ok := errors.AsType[*transport.Error](err); ok {
		why := http.StatusText(e.StatusCode)
		for _, d := range e.Errors {
			if d.Message != "" {
				why = d.Message
				break
			}
		}
		why = clip(fmt.Sprintf("%d %s", e.StatusCode, why))
		switch e.StatusCode {
		case http.StatusNotFound:
			return fmt.Errorf("%s: %w: %w", why, ErrElsewhere, berth.ErrNotFound)
		case http.StatusUnauthorized, http.StatusForbidden:
			return fmt.Errorf("%s: it does not exist, or needs other credentials (docker login)", why)
		case http.StatusTooManyRequests:
			return fmt.Errorf("%s: too many requests: log in (docker login), or try later", why)
		}
		return errors.New(why)
	}
	if u, ok := errors.AsType[*url.Error](err); ok && strings.Contains(err.Error(), "server gave HTTP response to HTTPS client") {
		host := u.URL
		if p, err := url.Parse(u.URL); err == nil {
			host = p.Host
		}
		return fmt.Errorf("it speaks plain http: if that is meant, name %s as an insecure registry", clip(host))
	}
	return err
}
