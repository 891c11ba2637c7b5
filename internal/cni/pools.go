package cni

import (
	"cmp"
	"encoding/json"
	"errors"
	"io/fs"
	"os"

	"berth/engine"
)

// readPools reads the pools of Berth's configuration file; what else is in it
// is the command line's. The usual file need not be there.
func readPools(path string) ([]engine.Pool, error) {
	b, err := os.ReadFile(cmp.Or(path, "/etc/berth/config.json"))
	if errors.Is(err, fs.ErrNotExist) && path == "" {
		return nil, nil
	}
	var c struct {
		Pools []engine.Pool `json:"pools"`
	}
	if err == nil {
		err = json.Unmarshal(b, &c)
	}
	if err != nil {
		return nil, fail(codeConfig, "configuration of Berth: %v", err)
	}
	for i, p := range c.Pools {
		if !p.Base.IsValid() || p.Size < p.Base.Bits() || p.Size > p.Base.Addr().BitLen() {
			return nil, fail(codeConfig, "configuration of Berth: pool %s cut into subnets of /%d", p.Base, p.Size)
		}
		c.Pools[i].Base = p.Base.Masked()
	}
	return c.Pools, nil
}
