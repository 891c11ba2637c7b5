// Package engine is the one door to Berth: it joins the store of what is
// wanted, the plan of what the kernel must hold, and the kernel.
//
// Every method works the same way. It takes its locks, writes the intent in one
// transaction of the store, and applies the difference between two plans. When
// the kernel refuses, or somebody else changed it, the whole host is read and
// brought to what the store wants; what cannot be reached is forgotten again.
//
// An Engine may be used by any number of goroutines, and any number of
// processes may have one open on the same store.
package engine

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"

	"berth"
	"berth/internal/ipam"
	"berth/internal/kernel"
	"berth/internal/netns"
	"berth/internal/nft"
	"berth/internal/plan"
	"berth/internal/script"
	"berth/internal/store"
)

// An Engine changes the networks of one host.
type Engine struct {
	o      Options
	host   *netns.NS
	bootID string
	id     string // of the run store, written into the firewall table
	store  *store.Store
	kernel *kernel.Kernel
	verify bool        // every change is read back
	scrap  string      // directory of a dry run's copy
	looked atomic.Bool // a dry run has looked whether the firewall is still ours

	mu      sync.Mutex // held over a change of the kernel; guards trusted
	trusted uint32     // generation of the firewall whose rules were seen to be right; 0: none
	known   sync.Map   // plan.Place → berth.Sandbox, of sandboxes looked at
	open    sync.Map   // plan.Place → *netns.NS, of sandboxes being changed
}

// Open opens the engine of a host. Nothing is created until something is
// wanted. It returns an error that matches [berth.ErrUnsupported] on a kernel
// that lacks SO_NETNS_COOKIE (before Linux 5.14).
func Open(ctx context.Context, o Options) (*Engine, error) {
	if o.Root == "" {
		o.Root = "/var/lib/berth"
	}
	if o.Run == "" {
		o.Run = "/run/berth"
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if o.Notice == nil {
		o.Notice = func(string) {}
	}
	e := &Engine{o: o, verify: os.Getenv("BERTH_VERIFY") == "1"}
	if err := e.start(ctx); err != nil {
		return nil, errors.Join(fmt.Errorf("open berth: %w", err), e.Close())
	}
	return e, nil
}

func (e *Engine) start(ctx context.Context) (err error) {
	if e.o.NetNS == "" {
		e.host, err = netns.Current()
	} else {
		e.host, err = netns.Open(e.o.NetNS)
	}
	if err != nil {
		return err
	}
	if e.bootID, err = netns.BootID(); err != nil {
		return err
	}
	run, err := resolve(e.o.Run)
	if err != nil {
		return err
	}
	e.id = hexOf("run store", e.bootID, run, fmt.Sprint(e.host.Cookie()))[:12]
	e.store, err = store.Open(e.o.Root, e.o.Run, store.Host{BootID: e.bootID, Cookie: e.host.Cookie()})
	if err != nil {
		return err
	}
	if e.o.DryRun {
		if e.scrap, err = os.MkdirTemp("", "berth-dry-run-"); err != nil {
			return err
		}
		if e.store, err = e.store.Copy(e.scrap); err != nil {
			return err
		}
	}
	e.kernel, err = kernel.Open(e.host, kernel.Options{Store: e.id, Lookup: e.lookup})
	return err
}

// Close lets go of the host. Nothing of what was connected changes.
func (e *Engine) Close() error {
	var errs []error
	if e.kernel != nil {
		errs = append(errs, e.kernel.Close())
	}
	if e.host != nil {
		errs = append(errs, e.host.Close())
	}
	if e.store != nil {
		e.store.Close()
	}
	if e.scrap != "" {
		errs = append(errs, os.RemoveAll(e.scrap))
	}
	return errors.Join(errs...)
}

// resolve follows the links in a path as far as it is there: a directory has
// one name, whether it is asked for as /run/berth or /var/run/berth, before it
// is made and after.
func resolve(path string) (string, error) {
	path, err := filepath.Abs(path)
	if err != nil {
		return "", err
	}
	for parent, rest := path, ""; ; {
		real, err := filepath.EvalSymlinks(parent)
		if !errors.Is(err, os.ErrNotExist) || parent == filepath.Dir(parent) {
			return filepath.Join(real, rest), err
		}
		parent, rest = filepath.Dir(parent), filepath.Join(filepath.Base(parent), rest)
	}
}

// randomID is 64 random hex digits.
func randomID() string {
	var b [32]byte
	rand.Read(b[:]) // never fails (crypto/rand)
	return hex.EncodeToString(b[:])
}

// hexOf is 64 hex digits that are a function of parts.
func hexOf(parts ...string) string {
	sum := sha256.Sum256([]byte(strings.Join(parts, "\x00")))
	return hex.EncodeToString(sum[:])
}

// lookup opens the namespace of a place for the kernel, if it is still the one
// that was recorded.
func (e *Engine) lookup(p plan.Place) (*netns.NS, error) {
	if v, ok := e.open.Load(p); ok {
		return v.(*netns.NS).Share(), nil
	}
	sb, err := e.recall(p)
	if err != nil {
		return nil, err
	}
	return openSandbox(sb)
}

// recall returns the record of a place's sandbox.
func (e *Engine) recall(p plan.Place) (sb berth.Sandbox, err error) {
	if v, ok := e.known.Load(p); ok {
		return v.(berth.Sandbox), nil
	}
	err = e.store.View(context.Background(), func(tx *store.Tx) (err error) {
		sb, err = tx.Sandbox(string(p))
		return err
	})
	if err == nil {
		e.known.Store(p, sb)
	}
	return sb, err
}

// openSandbox opens a recorded namespace. A path that leads to another one by
// now is as good as gone.
func openSandbox(sb berth.Sandbox) (*netns.NS, error) {
	ns, err := netns.Open(sb.Path)
	if err != nil {
		return nil, err
	}
	if ns.Cookie() != sb.Cookie {
		ns.Close()
		return nil, fmt.Errorf("%s is another namespace by now: %w", sb.Path, os.ErrNotExist)
	}
	return ns, nil
}

// alive reports whether the namespace of a sandbox is still there.
func alive(sb berth.Sandbox) bool {
	ns, err := openSandbox(sb)
	if err != nil {
		// Only a namespace that is surely gone may be forgotten.
		return !errors.Is(err, os.ErrNotExist) && !errors.Is(err, syscall.ESRCH)
	}
	ns.Close()
	return true
}

// apply changes the kernel by the difference of two plans.
func (e *Engine) apply(ctx context.Context, d plan.Delta) error {
	if err := e.run(ctx, plan.Steps(d)); err != nil {
		return err
	}
	e.readBack(ctx, d)
	return nil
}

// run is the way of every change to the kernel.
func (e *Engine) run(ctx context.Context, steps []plan.Step) error {
	if len(steps) == 0 {
		return nil
	}
	if e.o.Commands != nil {
		s := script.Script{Ruleset: nft.Ruleset(), Store: e.id, Name: e.address}
		e.o.Commands(s.Render(steps))
	}
	if e.o.DryRun {
		return nil
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	commits := uint32(0)
	for _, s := range steps {
		if _, ok := s.(plan.Transaction); ok {
			commits++
		}
	}
	if err := e.kernel.Apply(ctx, steps); err != nil {
		return err
	}
	if commits == 0 || e.trusted == 0 {
		return nil
	}
	// Our own commits, one each, and nobody else's: the rules are still those
	// that were seen to be right. A change that changed nothing counts for
	// none; then the next verb looks at the rules once more.
	e.trusted += commits
	e.store.SetGeneration(e.trusted)
	return nil
}

// drifted reports whether somebody else changed the firewall so that our rules
// are not what they should be. The elements are not looked at: that is check's.
func (e *Engine) drifted(ctx context.Context) (bool, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	gen, err := e.kernel.Generation()
	if err != nil {
		return false, err
	}
	if gen == e.store.Generation() {
		e.trusted = gen
		return false, nil
	}
	e.trusted = 0
	any := false
	err = e.store.View(ctx, func(tx *store.Tx) error {
		all, err := tx.Networks()
		any = len(all) > 0
		return err
	})
	if err != nil {
		return false, err
	}
	t, err := e.table()
	if err != nil {
		return false, err
	}
	if t.Exact == any && t.Present == any {
		e.trusted = gen
		if !any {
			return false, nil
		}
		e.store.SetGeneration(gen)
		return false, nil
	}
	e.o.Log.Info("the firewall was changed by somebody else", "generation", gen)
	return true, nil
}

// table looks at the firewall's rules. Those of another run store are an error
// that matches [berth.ErrConflict]; a table without rules is nobody's.
func (e *Engine) table() (nft.Table, error) {
	t, err := e.kernel.Table()
	if err == nil && t.Store != "" && t.Store != e.id {
		err = fmt.Errorf("table inet berth of this host belongs to another run store (%s, this one is %s): use that one (--run), or, if it is lost, 'nft delete table inet berth': %w", t.Store, e.id, berth.ErrConflict)
	}
	return t, err
}

// address is how the commands of --commands name a sandbox: by its name under
// /run/netns, or by its path.
func (e *Engine) address(p plan.Place) string {
	sb, err := e.recall(p)
	if err != nil {
		return string(p)
	}
	if name, ok := strings.CutPrefix(sb.Path, netns.Dir+"/"); ok {
		return name
	}
	return sb.Path
}

// pools are where subnets come from.
func (e *Engine) pools() []ipam.Pool {
	if len(e.o.Pools) == 0 {
		return ipam.DefaultPools
	}
	out := make([]ipam.Pool, len(e.o.Pools))
	for i, p := range e.o.Pools {
		out[i] = ipam.Pool(p)
	}
	return out
}
