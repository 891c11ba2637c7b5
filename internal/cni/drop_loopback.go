package cni

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"

	"github.com/containernetworking/cni/pkg/skel"
	"github.com/containernetworking/cni/pkg/types"
	current "github.com/containernetworking/cni/pkg/types/100"

	"berth/internal/attach"
)

var loopbackKeys = map[string]map[string]key{"": {"prevResult": {verdict: same, why: "it is passed on"}}}

func loopbackAdd(args *skel.CmdArgs) error {
	var conf types.NetConf
	if err := json.Unmarshal(args.StdinData, &conf); err != nil {
		return fmt.Errorf("failed to parse network config: %w", err)
	}
	if _, err := previousOf(&conf); err != nil {
		return err
	}
	h, err := openNS(args.Netns)
	if err != nil {
		return err
	}
	defer h.Close()
	on := true
	if err := h.Tune(context.Background(), "lo", attach.Change{Up: &on}); err != nil {
		return err
	}
	l, err := h.Inside("lo")
	if err != nil {
		return err
	}
	r := &current.Result{
		CNIVersion: current.ImplementedSpecVersion,
		Interfaces: []*current.Interface{{Name: "lo", Mac: l.MAC.String(), Sandbox: args.Netns}},
	}
	seen := map[bool]bool{}
	for _, a := range l.Addrs {
		if !a.Addr().IsLoopback() {
			return fmt.Errorf("loopback interface found with non-loopback address %q", a.Addr())
		}
		if v4 := a.Addr().Is4(); !seen[v4] {
			seen[v4] = true
			r.IPs = append(r.IPs, &current.IPConfig{Interface: current.Int(0), Address: ipNet(a)})
		}
	}
	if conf.PrevResult != nil {
		return printResult(conf.PrevResult, conf.CNIVersion)
	}
	return printResult(r, conf.CNIVersion)
}

func loopbackDel(args *skel.CmdArgs) error {
	h, err := openGoing(args.Netns)
	if h == nil || err != nil {
		return err
	}
	defer h.Close()
	off := false
	return h.Tune(context.Background(), "lo", attach.Change{Up: &off})
}

func loopbackCheck(args *skel.CmdArgs) error {
	h, err := openNS(args.Netns)
	if err != nil {
		return err
	}
	defer h.Close()
	l, err := h.Inside("lo")
	if err == nil && !l.Up {
		err = errors.New("loopback interface is down")
	}
	return err
}
